//! What goes in and what comes out.

use super::*;

#[tokio::test]
async fn what_is_said_is_heard_and_the_environment_is_what_was_given() {
    let world = World::new();
    let mut spec = world.spec("a", "env; pwd; echo up; while read line; do echo \"heard $line\"; done");
    spec.environment.insert("KEY".into(), "a \"$b\"\nc".into());
    let worker = world.life().start(spec).await.expect("started");
    let mut output = worker.output(0);
    let work = world.directory.path().join("work");
    let work = work.canonicalize().expect("made").to_string_lossy().into_owned();
    let greeting = until(&mut output, "up\n").await;
    let mut lines: Vec<_> =
        greeting.lines().filter(|line| !line.starts_with("PWD=") && *line != "_=/usr/bin/env").collect();
    lines.sort_unstable();
    let mut expected = ["KEY=a \"$b\"", "c", "PATH=/usr/bin:/bin", "up", &work];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    worker.say(b"one\ntw").await.expect("said");
    worker.say(b"o\n").await.expect("said");
    assert_eq!(until(&mut output, "two\n").await, "heard one\nheard two\n");
    assert_eq!(in_time(worker.stop(PATIENCE)).await, End::Killed(15));
    assert!(world.left().is_empty());
}

#[tokio::test]
async fn given_input_ends_and_cannot_be_added_to() {
    let world = World::new();
    let input = Input::Bytes(b"all of it".to_vec());
    let worker =
        world.life().start(Spec { input, ..world.spec("a", "cat; sleep 0.1; exit 3") }).await.expect("started");
    let refused = worker.say(b"more").await.expect_err("its input is a file");
    assert!(refused.kind() == io::ErrorKind::Unsupported || worker.ended().await == End::Exited(3), "{refused}");
    assert_eq!(rest(&worker, 0).await, "all of it");
    assert_eq!(rest(&worker, 4).await, "of it");
    assert_eq!(in_time(worker.ended()).await, End::Exited(3));
    worker.stop(PATIENCE).await;
}

#[tokio::test(start_paused = true)]
async fn a_deaf_worker_is_an_error_and_half_a_message_is_ended_first() {
    let world = World::new();
    let go = world.directory.path().join("work/go");
    std::fs::create_dir(world.directory.path().join("work")).expect("made");
    rustix::fs::mknodat(rustix::fs::CWD, &go, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).expect("a FIFO");
    let worker = world.start("a", "read go < go; cat").await;
    let long = format!("{}\n", "x".repeat(3 << 20));
    // The paused clock jumps to the end of our patience as soon as nothing else can happen.
    let deaf = worker.say(long.as_bytes()).await.expect_err("it reads nothing");
    assert_eq!(deaf.kind(), io::ErrorKind::TimedOut);
    tokio::time::resume();
    let mut output = worker.output(0);
    std::fs::write(go, "go\n").expect("it is told to read");
    let (said, heard) = tokio::join!(worker.say(b"next\n"), until(&mut output, "next\n"));
    said.expect("said");
    assert!(heard == format!("{long}next\n"), "{} bytes heard", heard.len());
    worker.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn read_output_can_be_given_back_and_offsets_stay() {
    let world = World::new();
    let worker = world.start("a", "head -c 100000 /dev/zero | tr '\\0' x; echo end").await;
    assert_eq!(in_time(worker.ended()).await, End::Exited(0));
    let output = worker.output(0);
    output.forget(100_000).expect("holes can be made here");
    assert_eq!(rest(&worker, 100_000).await, "end\n");
    use std::os::unix::fs::MetadataExt;
    let spool = worker.place().out().metadata().expect("there");
    assert_eq!((spool.len(), spool.blocks() * 512 < 50_000), (100_004, true), "{} blocks", spool.blocks());
    worker.stop(PATIENCE).await;
    let gone = worker.output(0).next_chunk().await.expect_err("cleared away");
    assert_eq!(gone.kind(), io::ErrorKind::NotFound);
}

#[tokio::test]
async fn unread_output_is_bounded_and_read_output_is_not() {
    let world = World::new();
    let bounded = |name: &str, script: &str| {
        let mut spec = world.spec(name, script);
        spec.limits.output = 256 * 1024;
        spec
    };
    let life = world.life();
    let flood = life.start(bounded("flood", "exec yes")).await.expect("started");
    assert_eq!(in_time(flood.ended()).await, End::TooMuchOutput(256 * 1024));
    // Another life knows the reason, too.
    let found = world.life().find("flood").await.expect("looked").expect("there");
    assert_eq!(in_time(found.ended()).await, End::TooMuchOutput(256 * 1024));
    flood.stop(PATIENCE).await;

    let steady = "n=0; while [ $n -lt 16 ]; do head -c 65536 /dev/zero; read go; n=$((n+1)); done";
    let steady = life.start(bounded("steady", steady)).await.expect("started");
    let mut output = steady.output(0);
    while in_time(output.next_chunk()).await.expect("readable").is_some() {
        if output.offset().is_multiple_of(65536) {
            let _it_has_ended = steady.say(b"go\n").await;
        }
    }
    assert_eq!((output.offset(), steady.ended().await), (16 * 65536, End::Exited(0)));
    steady.stop(PATIENCE).await;
}

//! How workers end, and what a later life of the gateway finds.

use super::*;

#[tokio::test]
async fn ends_are_told_apart() {
    let world = World::new();
    for (script, end) in [("true", End::Exited(0)), ("exit 9", End::Exited(9)), ("kill -SEGV $$", End::Killed(11))] {
        let worker = world.start("a", script).await;
        assert_eq!(in_time(worker.ended()).await, end, "{script}");
        assert_eq!(in_time(worker.stop(PATIENCE)).await, end, "{script}");
    }
    let mut spec = world.spec("a", "exec sleep 1000");
    spec.limits.runtime = Some(Duration::from_millis(300));
    let worker = world.life().start(spec).await.expect("started");
    assert_eq!(in_time(worker.ended()).await, End::TimedOut(Some(Duration::from_millis(300))));
    worker.stop(PATIENCE).await;
    assert!(world.left().is_empty());
}

#[tokio::test]
async fn a_stop_ends_the_whole_tree_even_what_left_the_group() {
    let world = World::new();
    let script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$; sleep 1000' & sleep 1000 & echo $!; wait; wait";
    let worker = world.start("a", script).await;
    let mut output = worker.output(0);
    let mut pids = Vec::new();
    let mut text = String::new();
    while text.lines().count() < 2 || !text.ends_with('\n') {
        let chunk = in_time(output.next_chunk()).await.expect("readable").expect("it runs");
        text.push_str(std::str::from_utf8(&chunk).expect("text"));
    }
    pids.extend(text.lines().map(|line| line.parse::<u32>().expect("a pid")));
    pids.push(worker.pid().await.expect("it runs"));
    assert!(pids.iter().all(|pid| lives(*pid)));
    assert_eq!(in_time(worker.stop(Duration::from_millis(200))).await, End::Killed(9));
    in_time(async {
        while pids.iter().any(|pid| lives(*pid)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert!(world.left().is_empty());
    assert_eq!(worker.stop(PATIENCE).await, End::Killed(9), "a second stop changes nothing");
}

#[tokio::test]
async fn a_later_life_reads_on_and_talks_on() {
    let world = World::new();
    let earlier = world.start("session:1/x", "while read line; do echo \"$line!\"; done; exit 4").await;
    earlier.say(b"one\n").await.expect("said");
    let mut output = earlier.output(0);
    assert_eq!(until(&mut output, "one!\n").await, "one!\n");
    earlier.say(b"two\n").await.expect("said");

    let later = world.life();
    let found = later.find("session:1/x").await.expect("looked").expect("it is there");
    assert_eq!((found.name(), found.pid().await), ("session:1/x", earlier.pid().await));
    let mut output = found.output(output.offset());
    assert_eq!(until(&mut output, "two!\n").await, "two!\n");
    found.say(b"three\n").await.expect("said");
    assert_eq!(until(&mut output, "three!\n").await, "three!\n");
    assert_eq!(output.offset(), 17);

    let again = later.start(world.spec("session:1/x", "true")).await.expect_err("it runs");
    assert!(matches!(again, WorkerError::Running(_)), "{again}");
    in_time(found.stop(PATIENCE)).await;
    assert!(later.find("session:1/x").await.expect("looked").is_none());
}

#[tokio::test]
async fn what_no_life_knows_the_end_of_is_gone_and_its_output_is_not() {
    let world = World::new();
    let worker = world.start("a", "echo last words; exit 5").await;
    assert_eq!(in_time(worker.ended()).await, End::Exited(5));
    // As after a boot: the record names a process that is another's now, or nobody's.
    let found = world.life().find("a").await.expect("looked").expect("its files are there");
    assert_eq!(in_time(found.ended()).await, End::Gone);
    assert_eq!(rest(&found, 0).await, "last words\n");
    let next = world.life().start(world.spec("a", "exit 6")).await.expect("started over the files of the dead");
    assert_eq!(in_time(next.ended()).await, End::Exited(6));
    next.stop(PATIENCE).await;
}

#[tokio::test]
async fn a_record_of_another_process_gets_nobody_killed() {
    let world = World::new();
    let worker = world.start("a", "exec sleep 1000").await;
    let place = worker.place().clone();
    let mut record = place.record().expect("written");
    let mut bystander = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep runs");
    let process = record.process.as_mut().expect("a process");
    process.pid = bystander.id();
    process.start_ticks -= 1;
    place.write(&record).expect("written");
    let swept = world.life().sweep(&BTreeSet::new()).await.expect("swept");
    assert_eq!(swept, ["a"]);
    assert!(lives(bystander.id()), "the number alone is no proof");
    // Whoever writes to its spool is found all the same.
    assert_eq!(in_time(worker.ended()).await, End::Killed(9));
    bystander.kill().and_then(|()| bystander.wait()).expect("ours");
}

#[tokio::test]
async fn a_sweep_takes_what_is_not_kept() {
    let world = World::new();
    let (kept, swept) = (world.start("kept", "exec sleep 1000").await, world.start("swept", "exec sleep 1000").await);
    std::fs::create_dir(world.directory.path().join("state/workers/half-made")).expect("made");
    let keep = BTreeSet::from(["kept".to_owned()]);
    let mut names = in_time(world.life().sweep(&keep)).await.expect("swept");
    names.sort();
    assert_eq!(names, ["hermes-agent-default-half-made.service", "swept"]);
    // Two lives in one process: only the first to ask learns the end of a child.
    assert!(matches!(in_time(swept.ended()).await, End::Killed(15) | End::Gone));
    assert_eq!(world.left(), ["kept"]);
    assert!(lives(kept.pid().await.expect("it runs")));
    kept.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn what_cannot_be_run_says_why_and_leaves_nothing() {
    let world = World::new();
    let refused = async |change: &dyn Fn(&mut Spec)| {
        let mut spec = world.spec("a", "true");
        change(&mut spec);
        world.life().start(spec).await.expect_err("refused").to_string()
    };
    let missing = refused(&|spec| spec.command[0] = "no-such-program".into()).await;
    assert!(missing.contains("no program 'no-such-program'"), "{missing}");
    assert!(refused(&|spec| spec.command.clear()).await.contains("no program ''"));
    let variable = refused(&|spec| drop(spec.environment.insert("A=B".into(), String::new()))).await;
    assert!(variable.contains("'A=B' cannot be a variable"), "{variable}");
    let script = world.directory.path().join("broken");
    std::fs::write(&script, "#!/no/such/interpreter\n").expect("written");
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("changed");
    let broken = refused(&|spec| spec.command[0] = script.to_string_lossy().into_owned()).await;
    assert!(broken.contains("did not start"), "{broken}");
    assert!(world.left().is_empty());
}

#[tokio::test]
async fn a_child_gets_three_descriptors_and_no_new_rights() {
    let world = World::new();
    let (left_open, _other_end) = io::pipe().expect("a pipe");
    rustix::io::fcntl_setfd(&left_open, rustix::io::FdFlags::empty()).expect("changed");
    let worker = world.start("a", "ls /proc/$$/fd; grep NoNewPrivs /proc/self/status; exit 1").await;
    let text = rest(&worker, 0).await;
    assert_eq!(text, "0\n1\n2\nNoNewPrivs:\t1\n");
    worker.stop(PATIENCE).await;
}

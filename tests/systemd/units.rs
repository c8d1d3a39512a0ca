//! The unit files as systemd reads them.

use super::machine;

/// Exposure that `systemd-analyze security` may find, in tenths.
const SYSTEM_EXPOSURE: u32 = 15;
/// The user unit does without anything that needs a namespace; see its comments.
const USER_EXPOSURE: u32 = 64;

#[test]
fn systemd_finds_nothing_to_say_about_the_units() {
    let Some(machine) = machine() else { return };
    for instance in ["default", "work"] {
        machine.person(&["hermes-gateway", "install", "--no-start", "--instance", instance]).ok();
        machine.root(&["hermes-gateway", "install", "--system", "--no-start", "--instance", instance]).ok();
    }
    for suffix in ["", "@work"] {
        let units = format!(
            "hermes-gateway{suffix}.service hermes-gateway{suffix}.socket hermes-gateway-control{suffix}.socket"
        );
        for (scope, verified) in [
            ("user", machine.person_sh(&format!("systemd-analyze --user verify {units}"))),
            ("system", machine.root_sh(&format!("systemd-analyze verify {units}"))),
        ] {
            verified.ok();
            assert_eq!((verified.stdout().as_str(), verified.stderr().as_str()), ("", ""), "{scope} {units}");
        }
    }
}

#[test]
fn the_sandboxes_are_as_tight_as_promised() {
    let Some(machine) = machine() else { return };
    machine.person(&["hermes-gateway", "install", "--no-start"]).ok();
    machine.root(&["hermes-gateway", "install", "--system", "--no-start"]).ok();
    let exposure = |report: String| -> u32 {
        let line = report.lines().last().expect("a verdict").to_owned();
        let number = line.split_whitespace().find_map(|word| word.parse::<f64>().ok()).expect("a number");
        (number * 10.0).round() as u32
    };
    let system = exposure(machine.root(&["systemd-analyze", "security", "--no-pager", "hermes-gateway.service"]).ok());
    let user = exposure(
        machine.person(&["systemd-analyze", "--user", "security", "--no-pager", "hermes-gateway.service"]).ok(),
    );
    println!("exposure in tenths: system {system}, user {user}");
    assert!(system <= SYSTEM_EXPOSURE && user <= USER_EXPOSURE, "system {system}, user {user}");
}

//! The unit files: embedded, one copy of each, and the same bytes for everybody.
//!
//! What is stored are the templates for named instances. The plain units are those with the instance filled in, so the
//! two cannot drift apart. Only the binary's path differs from machine to machine; nothing of a caller's environment
//! gets in.

use std::net::SocketAddr;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::directories::Scope;
use crate::model::id::InstanceName;

/// The explanations of `journalctl -x`.
pub const CATALOG: &str = include_str!("../../units/hermes-gateway.catalog");

/// The binary's path in the stored files, as packages install it.
const PACKAGED_BINARY: &str = "/usr/bin/hermes-gateway";

const USER_SERVICE: &str = include_str!("../../units/user/hermes-gateway@.service");
const USER_CONTROL: &str = include_str!("../../units/user/hermes-gateway-control@.socket");
const USER_HTTP: &str = include_str!("../../units/user/hermes-gateway.socket");
const USER_HTTP_NAMED: &str = include_str!("../../units/user/hermes-gateway@.socket");
const SYSTEM_SERVICE: &str = include_str!("../../units/system/hermes-gateway@.service");
const SYSTEM_CONTROL: &str = include_str!("../../units/system/hermes-gateway-control@.socket");
const SYSTEM_HTTP: &str = include_str!("../../units/system/hermes-gateway.socket");
const SYSTEM_HTTP_NAMED: &str = include_str!("../../units/system/hermes-gateway@.socket");

/// A file to be installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFile {
    /// Its path below the directory of units.
    pub name: String,
    /// Its content.
    pub text: String,
}

/// The names of an instance's units.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitNames {
    /// The service.
    pub service: String,
    /// The socket for HTTP.
    pub http: String,
    /// The control socket.
    pub control: String,
}

impl UnitNames {
    /// The units of this instance.
    pub fn of(instance: &InstanceName) -> Self {
        let suffix = if instance.is_default() { String::new() } else { format!("@{instance}") };
        Self {
            service: format!("hermes-gateway{suffix}.service"),
            http: format!("hermes-gateway{suffix}.socket"),
            control: format!("hermes-gateway-control{suffix}.socket"),
        }
    }

    /// All of them, sockets first.
    pub fn all(&self) -> [&str; 3] {
        [&self.http, &self.control, &self.service]
    }
}

/// The files that an instance needs: the plain units, or the templates that all named instances share.
pub fn files(scope: Scope, instance: &InstanceName, binary: &Path) -> Vec<UnitFile> {
    let (service, control, http, http_named) = match scope {
        Scope::User => (USER_SERVICE, USER_CONTROL, USER_HTTP, USER_HTTP_NAMED),
        Scope::System => (SYSTEM_SERVICE, SYSTEM_CONTROL, SYSTEM_HTTP, SYSTEM_HTTP_NAMED),
    };
    let service = service.replace(PACKAGED_BINARY, &escape(binary));
    let file = |name: &str, text: &str| UnitFile { name: name.to_owned(), text: text.to_owned() };
    if instance.is_default() {
        let plain = |text: &str| text.replace("@%i", "").replace("%i", InstanceName::DEFAULT);
        vec![
            file("hermes-gateway.service", &plain(&service)),
            file("hermes-gateway-control.socket", &plain(control)),
            file("hermes-gateway.socket", http),
        ]
    } else {
        vec![
            file("hermes-gateway@.service", &service),
            file("hermes-gateway-control@.socket", control),
            file("hermes-gateway@.socket", http_named),
        ]
    }
}

/// A drop-in that lets an instance's HTTP socket listen on an address of its own.
pub fn listen_drop_in(instance: &InstanceName, address: SocketAddr) -> UnitFile {
    let name = format!("{}.d/listen.conf", UnitNames::of(instance).http);
    // The empty assignment forgets the address of the unit file.
    let text = format!("[Socket]\nListenStream=\nListenStream={address}\n");
    UnitFile { name, text }
}

/// A path as an `Exec` line takes it: quoted if need be, and no `%` or `$` that systemd would expand.
fn escape(binary: &Path) -> String {
    let path =
        binary.to_string_lossy().replace('\\', "\\\\").replace('%', "%%").replace('$', "$$").replace('"', "\\\"");
    if path.contains(char::is_whitespace) || path.contains('\'') { format!("\"{path}\"") } else { path }
}

const MARK: &str = "# Installed by hermes-gateway; change it by 'systemctl edit'. Checksum: ";

impl UnitFile {
    /// The content with a first line by which it is recognised as ours and unchanged.
    pub fn marked(&self) -> String {
        format!("{MARK}{}\n{}", checksum(&self.text), self.text)
    }
}

/// What is known of an installed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ownership {
    /// We wrote it and nobody changed it.
    Ours,
    /// We wrote it, and somebody changed it.
    Edited,
    /// Somebody else wrote it.
    Foreign,
}

/// Who wrote this content.
pub fn ownership(content: &str) -> Ownership {
    let Some((first, rest)) = content.split_once('\n') else { return Ownership::Foreign };
    match first.strip_prefix(MARK) {
        None => Ownership::Foreign,
        Some(sum) if sum == checksum(rest) => Ownership::Ours,
        Some(_) => Ownership::Edited,
    }
}

fn checksum(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_recognised() {
        let unit = UnitFile { name: "x.service".into(), text: "[Service]\nExecStart=/bin/true\n".into() };
        assert_eq!(ownership(&unit.marked()), Ownership::Ours);
        assert_eq!(ownership(&unit.marked().replace("true", "false")), Ownership::Edited);
        assert_eq!(ownership(&unit.text), Ownership::Foreign);
    }

    #[test]
    fn odd_paths_stay_one_word() {
        assert_eq!(escape(Path::new("/usr/bin/hermes-gateway")), "/usr/bin/hermes-gateway");
        assert_eq!(escape(Path::new("/home/a b/100%/$x")), "\"/home/a b/100%%/$$x\"");
    }

    #[test]
    fn plain_units_have_no_specifier_of_an_instance_left_and_templates_no_fixed_one() {
        let default = InstanceName::DEFAULT.parse().expect("a name");
        let named = "work".parse().expect("a name");
        for scope in [Scope::User, Scope::System] {
            for file in files(scope, &default, Path::new(PACKAGED_BINARY)) {
                assert!(!file.text.contains("%i"), "{scope:?} {}", file.name);
            }
            for file in files(scope, &named, Path::new("/opt/hermes")) {
                assert!(file.text.contains("%i"), "{scope:?} {}", file.name);
                assert!(!file.text.contains(PACKAGED_BINARY), "{scope:?} {}", file.name);
            }
        }
    }

    #[test]
    fn every_life_cycle_event_is_explained() {
        for event in crate::journal::LifeEvent::ALL {
            assert!(CATALOG.contains(&format!("-- {}", event.message_id())), "{event:?}");
        }
    }
}

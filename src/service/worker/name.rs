//! What a worker is called where only some characters may be: in a unit's name and in a directory.

use sha2::{Digest, Sha256};

use crate::model::id::InstanceName;

/// Longest name of a unit, and of a file, in bytes.
const MAX: usize = 255;
/// What every worker's unit starts with.
const PREFIX: &str = "hermes-agent-";
const SUFFIX: &str = ".service";
/// Bytes of a worker's name in its unit and its directory: what is left of [`MAX`] beside the longest instance's name.
const MAX_SLUG: usize = MAX - PREFIX.len() - InstanceName::MAX_LEN - 1 - SUFFIX.len();
/// Hexadecimal digits of a hash that keep long names apart that begin alike.
const DIGITS: usize = 16;

/// The worker's name out of `A-Z a-z 0-9 : _ . \`, at most [`MAX_SLUG`] bytes, different for different names.
pub(super) fn slug(name: &str) -> String {
    // The crate escapes as for a path, where "/" becomes "-". Here "-" stands between instance and worker.
    let mut escaped = libsystemd::unit::escape_name(name).replace('-', "\\x2f");
    if escaped.len() > MAX_SLUG {
        let digest = Sha256::digest(name.as_bytes());
        let hash: String = digest.iter().take(DIGITS / 2).map(|byte| format!("{byte:02x}")).collect();
        // All ASCII by now. Half of an escape at the cut is a lone backslash with digits, which a unit's name may have.
        escaped.truncate(MAX_SLUG - DIGITS - 1);
        escaped = format!("{escaped}:{hash}");
    }
    escaped
}

/// The unit of a worker.
pub(super) fn unit(instance: &InstanceName, slug: &str) -> String {
    format!("{PREFIX}{instance}-{slug}{SUFFIX}")
}

/// What all units of an instance match, and those of instances whose name goes on from there: see [`slug_of_unit`].
pub(super) fn pattern(instance: &InstanceName) -> String {
    format!("{PREFIX}{instance}-*{SUFFIX}")
}

/// The slug in the name of a unit of this instance; `None` for the units of others.
pub(super) fn slug_of_unit<'a>(instance: &InstanceName, unit: &'a str) -> Option<&'a str> {
    let rest = unit.strip_prefix(PREFIX)?.strip_prefix(instance.as_str())?.strip_prefix('-')?;
    rest.strip_suffix(SUFFIX).filter(|slug| !slug.is_empty() && !slug.contains('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(name: &str) -> InstanceName {
        name.parse().expect("an instance name")
    }

    #[test]
    fn names_are_told_apart_whatever_is_in_them() {
        assert_eq!(slug("telegram:42"), "telegram:42");
        let names = ["a/b", "a-b", "a.b", ".ab", "a b", "a\\x2fb", "ä", "..", "*"];
        let slugs: std::collections::BTreeSet<_> = names.iter().map(|name| slug(name)).collect();
        assert_eq!(slugs.len(), names.len(), "{slugs:?}");
        for slug in &slugs {
            assert!(!slug.contains(['/', '-', '*']) && !slug.starts_with('.'), "{slug}");
        }
    }

    #[test]
    fn the_longest_name_fits_into_a_unit_and_stays_unique() {
        let longest = instance(&"i".repeat(InstanceName::MAX_LEN));
        let (one, two) = (format!("{}1", "@".repeat(400)), format!("{}2", "@".repeat(400)));
        assert!(unit(&longest, &slug(&one)).len() <= MAX);
        assert_ne!(slug(&one), slug(&two));
    }

    #[test]
    fn an_instance_knows_its_own_units() {
        let (short, long) = (instance("a"), instance("a-b"));
        let mine = unit(&short, &slug("b-c"));
        let others = unit(&long, &slug("c"));
        assert_eq!(slug_of_unit(&short, &mine), Some(slug("b-c").as_str()));
        assert_eq!(slug_of_unit(&short, &others), None);
        assert_eq!(slug_of_unit(&long, &others), Some("c"));
    }
}

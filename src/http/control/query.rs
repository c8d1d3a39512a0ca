//! What stands behind the `?` of a list: filters, where to go on, how much.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use axum::http::Uri;

use crate::http::error::ApiError;
use crate::store::browse::MAX_PAGE;

/// Items of a page when nobody says how many.
pub const DEFAULT_PAGE: usize = 20;

/// A query that was read.
#[derive(Debug)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// The query of a request, which may have these keys.
    pub fn of(uri: &Uri, known: &[&str]) -> Result<Self, ApiError> {
        let pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
        let pairs: BTreeMap<_, _> = pairs.map(|(key, value)| (key.into_owned(), value.into_owned())).collect();
        match pairs.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => {
                let known = known.join(", ");
                Err(ApiError::invalid(Some(key), format!("{key}: there is no such filter; there is: {known}")))
            }
            None => Ok(Self(pairs)),
        }
    }

    /// A value, if it is given.
    pub fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A value that means something, if it is given.
    pub fn parsed<T>(&self, key: &str) -> Result<Option<T>, ApiError>
    where
        T: FromStr,
        T::Err: Display,
    {
        let parse = |text: &str| text.parse().map_err(|e| ApiError::invalid(Some(key), format!("{key}: {e}")));
        self.text(key).map(parse).transpose()
    }

    /// How many items are wanted.
    pub fn limit(&self) -> Result<usize, ApiError> {
        match self.parsed("limit")?.unwrap_or(DEFAULT_PAGE) {
            limit if (1..=MAX_PAGE).contains(&limit) => Ok(limit),
            _ => Err(ApiError::invalid(Some("limit"), format!("limit: must be a number from 1 to {MAX_PAGE}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_understood_or_told_what_is_wrong() {
        let query = |text: &'static str| Query::of(&Uri::from_static(text), &["limit", "target"]);
        let good = query("/outbox?target=m%3A%21room&limit=7").expect("good");
        assert_eq!((good.text("target"), good.limit().expect("a limit")), (Some("m:!room"), 7));
        assert_eq!(query("/outbox").expect("good").limit().expect("a limit"), DEFAULT_PAGE);
        assert!(query("/outbox?tarjet=x").is_err());
        for bad in ["/outbox?limit=0", "/outbox?limit=1001", "/outbox?limit=many"] {
            assert!(query(bad).expect("keys are known").limit().is_err(), "{bad}");
        }
    }
}

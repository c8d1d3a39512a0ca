//! Stub, to be replaced.

use serde_json::Value;

/// Template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

/// Error.
#[derive(Debug, thiserror::Error)]
#[error("no")]
pub struct TemplateError;

impl Template {
    /// Parses.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Ok(Self(text.to_owned()))
    }

    /// Fills.
    pub fn fill(&self, _event: &str, payload: &Value) -> String {
        let mut out = self.0.replace("{__raw__}", &payload.to_string());
        if let Some(object) = payload.as_object() {
            for (k, v) in object {
                out = out.replace(&format!("{{{k}}}"), v.as_str().unwrap_or_default());
            }
        }
        out
    }
}

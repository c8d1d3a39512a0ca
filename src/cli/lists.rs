//! What all lists have in common: bounds, paging, JSON, a word when there is nothing.

use clap::Args;
use hyper::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Failure;
use super::client::Client;
use super::table::Table;
use super::words::{self, terminal_width};
use crate::http::control::DEFAULT_PAGE;
use crate::store::browse::{MAX_PAGE, Page};

/// How much of a list, and in which form.
#[derive(Debug, Args)]
pub struct Wanted {
    /// How many at most, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = DEFAULT_PAGE, value_parser = limit)]
    limit: usize,
    /// Go on before this one, as the end of a list says
    #[arg(long, value_name = "WHICH")]
    before: Option<String>,
    /// As JSON: "items", and in "next" what to go on before
    #[arg(long)]
    json: bool,
}

fn limit(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit)).ok_or(format!("a number from 1 to {MAX_PAGE}"))
}

/// Lists what is at this path, through these filters. `none` is said when there is nothing.
pub async fn list<T: DeserializeOwned + Serialize>(
    client: &Client,
    path: &str,
    filters: &[(&str, Option<&str>)],
    wanted: &Wanted,
    none: &str,
    table: impl FnOnce(&[T]) -> Table,
) -> Result<(), Failure> {
    let mut all = Page { items: Vec::new(), next: wanted.before.clone() };
    // A call looks at a bounded number of rows and may find few; what is wanted may be further back.
    loop {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &(wanted.limit - all.items.len()).to_string());
        let filters = filters.iter().filter_map(|(name, value)| Some((*name, (*value)?)));
        query.extend_pairs(filters.chain(all.next.iter().map(|next| ("before", next.as_str()))));
        let page: Page<T> = client.call(Method::GET, &format!("{path}?{}", query.finish())).await?;
        all.items.extend(page.items);
        all.next = page.next;
        if all.next.is_none() || all.items.len() >= wanted.limit {
            break;
        }
    }
    if wanted.json {
        return json(&all);
    }
    if all.items.is_empty() {
        return words::print(&format!("{none}\n"));
    }
    let mut text = table(&all.items).render(terminal_width());
    if let Some(next) = &all.next {
        text.push_str(&format!("\nThere is more: --before {next}\n"));
    }
    words::print(&text)
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    words::print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

//! Deliveries: listed, shown, taken up again, dropped.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Request, Uri};
use serde::{Deserialize, Serialize};

use super::query::Query;
use crate::http::Api;
use crate::http::ask::Asked;
use crate::http::error::ApiError;
use crate::model::delivery;
use crate::model::time::Timestamp;
use crate::store::browse::{DeliveryFilter, DeliveryView, MAX_PAGE, Page};
use crate::store::{HandReport, MAX_BY_HAND};

/// The request of `hermes-gateway outbox retry` and `outbox drop`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Chosen {
    /// These deliveries, at most 1000.
    #[serde(default)]
    pub numbers: Vec<i64>,
    /// Everything that was given up, instead; only to be taken up again.
    #[serde(default)]
    pub all_dead: bool,
}

/// Deliveries, newest first.
pub async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<Page<DeliveryView>>, ApiError> {
    let query = Query::of(&uri, &["state", "target", "limit", "before"])?;
    let target = query.text("target").map(str::to_owned);
    let filter = DeliveryFilter { state: query.parsed::<delivery::State>("state")?, target };
    Ok(Json(api.store.list_deliveries(filter, query.parsed("before")?, query.limit()?).await?))
}

/// A delivery with all its text.
pub async fn show(State(api): State<Api>, Path(number): Path<String>) -> Result<Json<DeliveryView>, ApiError> {
    let unknown = || ApiError::missing("delivery_not_found", format!("there is no delivery {}", number.escape_debug()));
    let found = api.store.show_delivery(number.parse().map_err(|_| unknown())?).await?;
    found.map(Json).ok_or_else(unknown)
}

/// Takes up again what was given up, and sends at once what waits.
pub async fn retry(State(api): State<Api>, request: Request<Body>) -> Result<Json<HandReport>, ApiError> {
    let chosen = chosen(&api, request).await?;
    let platforms = api.gateway.outbox().platforms();
    let idempotent = platforms.all().filter(|(_, _, limits)| limits.idempotent).map(|(name, ..)| name.to_owned());
    let idempotent: Vec<_> = idempotent.collect();
    let retry = |numbers: Vec<i64>| api.store.retry_deliveries(numbers, idempotent.clone(), Timestamp::now());
    let mut report = HandReport::default();
    if chosen.all_dead {
        // By rising numbers: what is given up anew meanwhile does not come twice.
        let mut after = 0;
        loop {
            let dead = api.store.dead_deliveries(after).await?;
            let Some(last) = dead.last() else { break };
            after = *last;
            report += retry(dead).await?;
            api.gateway.outbox().look_again();
        }
    }
    for numbers in chosen.numbers.chunks(MAX_BY_HAND) {
        report += retry(numbers.to_vec()).await?;
    }
    if report.again + report.due_now > 0 {
        tracing::info!(again = report.again, due_now = report.due_now, "deliveries were taken up again by hand");
        api.gateway.outbox().look_again();
    }
    Ok(Json(report))
}

/// Drops what waits or was given up.
pub async fn drop_them(State(api): State<Api>, request: Request<Body>) -> Result<Json<HandReport>, ApiError> {
    let chosen = chosen(&api, request).await?;
    if chosen.all_dead {
        return Err(ApiError::invalid(Some("all_dead"), "all_dead: deliveries are dropped by their numbers"));
    }
    let mut report = HandReport::default();
    for numbers in chosen.numbers.chunks(MAX_BY_HAND) {
        report += api.store.drop_deliveries(numbers.to_vec(), Timestamp::now()).await?;
    }
    if report.dropped > 0 {
        tracing::info!(deliveries = report.dropped, numbers = ?chosen.numbers, "deliveries were dropped by hand");
        // What waited behind them may go on.
        api.gateway.outbox().look_again();
    }
    Ok(Json(report))
}

async fn chosen(api: &Api, request: Request<Body>) -> Result<Chosen, ApiError> {
    let asked: Asked<Chosen> = Asked::read(api, request).await?;
    match asked.body {
        Chosen { numbers, all_dead: false } if numbers.is_empty() => {
            Err(ApiError::invalid(Some("numbers"), "numbers: must name at least one delivery"))
        }
        Chosen { numbers, .. } if numbers.len() > MAX_PAGE => {
            Err(ApiError::invalid(Some("numbers"), format!("numbers: at most {MAX_PAGE} at once")))
        }
        chosen => Ok(chosen),
    }
}

//! `simplon explain`, of what this gateway has at the moment.

use serde_json::Value;

use super::Control;
use crate::control::explain::{Ask, REFUSED, Refused, Sources, explain};
use crate::control::protocol::{ApiError, INTERNAL_ERROR};

/// Explains what is asked for, by the tables that workers have now.
pub(super) fn answer(control: &Control<'_, '_>, ask: &Ask) -> Result<Value, ApiError> {
    let refused = |refused: Refused| ApiError::new(REFUSED, refused.to_string());
    let (shared, writer) = (&control.shared, &control.writer);
    let tables = shared.tables.get_owned(writer, 0);
    let sources = Sources {
        policy: control.live.policy(),
        tables: tables.ok_or_else(|| refused(Refused::NoTables))?,
        plan: control.hops.plan(),
        sad: shared.sad.view_owned(writer),
        standing: Some(control.live.standing()),
        rows: control.records.rows.as_slice(),
        resolves: &shared.host.resolves,
    };
    let explanation = explain(ask, sources).map_err(refused)?;
    serde_json::to_value(explanation)
        .map_err(|error| ApiError::new(INTERNAL_ERROR, error.to_string()))
}

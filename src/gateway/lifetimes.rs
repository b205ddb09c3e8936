//! Ends SAs whose lifetime is over, and tells of those whose is nearly.

use std::time::Instant;

use tracing::{error, warn};

use super::Control;
use crate::control::events::Event;
use crate::control::lifetimes::{self, LifetimeEvent};
use crate::control::rows::SaRow;
use crate::ids::Spi;
use crate::ipsec::traffic::Direction;

/// Looks at what SAs have used, and stops those that have used all they may.
pub(super) fn follow(control: &mut Control<'_, '_>) {
    let (sad, writer) = (&control.shared.sad, &control.writer);
    let read = |slot, direction| lifetimes::used(sad, writer, slot, direction);
    for event in control.records.lifetimes.check(Instant::now(), read) {
        if event.hard {
            lifetimes::stop(sad, writer, event.slot, event.direction);
        }
        if let Some(row) = control.records.rows.get(event.slot) {
            tell(row, event);
            control.events.emit(told(row, event));
        }
    }
}

/// The SPI of the SA that `event` is about.
fn spi(row: &SaRow, event: LifetimeEvent) -> Spi {
    match event.direction {
        Direction::Outbound => row.outbound.spi,
        Direction::Inbound => row.inbound.spi,
    }
}

/// What subscribers are told.
fn told(row: &SaRow, event: LifetimeEvent) -> Event {
    Event::SaLifetime {
        tunnel: row.tunnel.clone(),
        spi: spi(row, event).to_string(),
        direction: event.direction.name().to_owned(),
        limit: event.kind,
        hard: event.hard,
    }
}

/// Logs that an SA of `row` has reached a limit.
fn tell(row: &SaRow, event: LifetimeEvent) {
    let (tunnel, direction) = (&row.tunnel, event.direction.name());
    let spi = spi(row, event);
    let (kind, limit) = (event.kind, event.kind.show(event.limit));
    if event.hard {
        error!(tunnel, direction, %spi, %kind, limit, "SA has expired and stopped: give both ends a new key");
    } else {
        warn!(tunnel, direction, %spi, %kind, limit, "SA will expire soon: it is at its soft limit");
    }
}

//! `simplon events`: what happens in a gateway, as it comes.

use super::client::Connection;
use super::{EventsArgs, Failure, client, print, show};
use crate::control::events::{Event, Kind, Notification, Occurrence, PolicyChange};
use crate::control::protocol::{Method, Subscribe};

/// Ends with the gateway, which is a failure, or when nobody reads what is printed.
pub(super) fn events(args: &EventsArgs) -> Result<(), Failure> {
    let socket = client::socket_path(
        args.gateway.socket.as_deref(),
        args.gateway.config.as_deref(),
    )?;
    let mut connection = Connection::open(&socket)?;
    let params = Subscribe {
        kinds: (!args.kinds.is_empty()).then(|| args.kinds.clone()),
    };
    connection.ask(Method::EventsSubscribe, &params)?;
    connection.wait_for_ever()?;
    loop {
        let line = connection.line()?;
        let value = serde_json::from_str(&line).map_err(Failure::new)?;
        let Notification { params, .. } = show::read(value)?;
        let text = if args.json {
            serde_json::to_string(&params).map_err(Failure::new)?
        } else {
            human(&params)
        };
        if !print(format!("{text}\n").as_bytes())? {
            return Ok(());
        }
    }
}

pub(super) fn parse_kind(name: &str) -> Result<Kind, String> {
    Kind::from_name(name).ok_or_else(|| {
        let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        format!("one of {}", names.join(", "))
    })
}

fn human(Occurrence { at, event }: &Occurrence) -> String {
    let what = match event {
        Event::Link { port, up: true } => format!("link of {port} is up"),
        Event::Link { port, up: false } => format!("link of {port} is down"),
        Event::SaLifetime {
            tunnel,
            spi,
            direction,
            limit,
            hard,
        } => {
            let then = if *hard {
                "it has stopped"
            } else {
                "a new one is due"
            };
            format!("{direction} SA {spi} of {tunnel} has come to its limit of {limit}: {then}")
        }
        Event::Policy { what, generation } => {
            let what = match what {
                PolicyChange::Loaded => "was loaded",
                PolicyChange::Added => "has something more",
                PolicyChange::Removed => "has something less",
                PolicyChange::Replaced => "has something replaced",
                PolicyChange::Confirmed => "was confirmed",
                PolicyChange::RolledBack => "was rolled back",
            };
            format!("policy {what}: number {generation} is in force")
        }
        Event::Lost { count } => format!("{count} events were lost"),
    };
    format!("{at} {what}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_with_its_time() {
        let line = human(&Occurrence {
            at: "2026-01-02T03:04:05.678Z".into(),
            event: Event::Link {
                port: "lan".into(),
                up: false,
            },
        });
        assert_eq!(line, "2026-01-02T03:04:05.678Z link of lan is down");
    }

    #[test]
    fn a_kind_that_is_none_is_refused_with_those_that_are() {
        assert_eq!(parse_kind("sa_lifetime"), Ok(Kind::SaLifetime));
        let refused = parse_kind("weather").expect_err("no kind");
        assert!(refused.contains("link, sa_lifetime, policy"), "{refused}");
    }
}

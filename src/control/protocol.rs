//! What is spoken over the control socket: JSON-RPC 2.0, one object a line, requests without parameters.
//!
//! | method | result |
//! |---|---|
//! | `show.ports` | [`super::report::PortsReport`] |
//! | `show.tunnels` | [`super::report::TunnelsReport`] |
//! | `show.sa` | [`super::report::SaReport`] |
//! | `show.drops` | [`super::report::DropsReport`] |
//! | `show.workers` | [`super::report::WorkersReport`] |

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The version string of JSON-RPC.
const JSONRPC: &str = "2.0";
/// JSON-RPC: the line was no JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON-RPC: the JSON was no request.
pub const INVALID_REQUEST: i32 = -32600;
/// JSON-RPC: no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// Ports, their link and their counters.
    ShowPorts,
    /// Tunnels and what fits into them.
    ShowTunnels,
    /// SAs.
    ShowSa,
    /// Drops by reason.
    ShowDrops,
    /// Workers, their lanes and cycles.
    ShowWorkers,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 5] = [
        Self::ShowPorts,
        Self::ShowTunnels,
        Self::ShowSa,
        Self::ShowDrops,
        Self::ShowWorkers,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ShowPorts => "show.ports",
            Self::ShowTunnels => "show.tunnels",
            Self::ShowSa => "show.sa",
            Self::ShowDrops => "show.drops",
            Self::ShowWorkers => "show.workers",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }
}

#[derive(Deserialize)]
struct Request {
    jsonrpc: String,
    method: String,
    #[serde(default)]
    id: Value,
}

/// An answer on the wire.
#[derive(Serialize, Deserialize, Debug)]
pub struct Response {
    /// Always "2.0".
    pub jsonrpc: String,
    /// The request's id; null where it could not be read.
    pub id: Value,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Or why it was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// Why a request was not answered.
#[derive(Serialize, Deserialize, Debug)]
pub struct ErrorObject {
    /// JSON-RPC's code.
    pub code: i32,
    /// For people.
    pub message: String,
}

/// One request as a line.
pub fn request_line(method: Method) -> String {
    let request = serde_json::json!({ "jsonrpc": JSONRPC, "id": 1, "method": method.name() });
    format!("{request}\n")
}

/// Answers one line with one line; `answer` gives the result of a method.
pub fn answer_line(line: &[u8], answer: impl FnOnce(Method) -> Value) -> String {
    let response = match serde_json::from_slice::<Value>(line) {
        Err(error) => failed(Value::Null, PARSE_ERROR, format!("not JSON: {error}")),
        Ok(value) => match serde_json::from_value::<Request>(value) {
            Err(error) => failed(
                Value::Null,
                INVALID_REQUEST,
                format!("not a JSON-RPC request: {error}"),
            ),
            Ok(request) if request.jsonrpc != JSONRPC => failed(
                request.id,
                INVALID_REQUEST,
                "`jsonrpc` must be \"2.0\"".into(),
            ),
            Ok(request) => match Method::from_name(&request.method) {
                None => failed(request.id, METHOD_NOT_FOUND, unknown_method()),
                Some(method) => Response {
                    jsonrpc: JSONRPC.into(),
                    id: request.id,
                    result: Some(answer(method)),
                    error: None,
                },
            },
        },
    };
    let mut line = serde_json::to_string(&response).unwrap_or_default();
    line.push('\n');
    line
}

fn unknown_method() -> String {
    let names: Vec<_> = Method::ALL.iter().map(|method| method.name()).collect();
    format!("no such method; there are {}", names.join(", "))
}

fn failed(id: Value, code: i32, message: String) -> Response {
    Response {
        jsonrpc: JSONRPC.into(),
        id,
        result: None,
        error: Some(ErrorObject { code, message }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(line: &str) -> Response {
        let answer = answer_line(line.as_bytes(), |method| method.name().into());
        assert!(answer.ends_with('\n'));
        serde_json::from_str(&answer).expect("an answer")
    }

    #[test]
    fn every_method_is_answered_with_its_id() {
        for method in Method::ALL {
            let answer = ask(&request_line(method));
            assert_eq!(answer.id, 1);
            assert_eq!(answer.result, Some(method.name().into()));
        }
    }

    #[test]
    fn garbage_is_answered_with_the_code_for_it() {
        let code = |line| ask(line).error.expect("an error").code;
        assert_eq!(code("{"), PARSE_ERROR);
        assert_eq!(code("[]"), INVALID_REQUEST);
        assert_eq!(
            code(r#"{"jsonrpc":"1.0","method":"show.sa","id":7}"#),
            INVALID_REQUEST
        );
        assert_eq!(
            code(r#"{"jsonrpc":"2.0","method":"drop.tables","id":7}"#),
            METHOD_NOT_FOUND
        );
    }
}

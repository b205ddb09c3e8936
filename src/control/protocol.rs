//! What is spoken over the control socket: JSON-RPC 2.0, one line each way for a request or a batch of them.
//! `docs/API.md` says it to clients.
//!
//! A method is a variant of [`Method`] with its name, and one of [`Call`] with its parameters, which
//! [`Method::understand`] reads. What the gateway has to do with it is in the gateway alone.

use std::path::PathBuf;
use std::vec;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::control::change::report::{
    ChangeKind, ChangeSettings, DiffParams, JobParams, LoadParams, RemoveParams, TablesParams,
};
use crate::control::events::Kind;
use crate::control::explain::Ask;
use crate::control::trace;
use crate::policy::edit::Edit;

/// The version of all that is said here. It rises with what would break a client.
pub const API: u32 = 1;
/// The version string of JSON-RPC.
pub const JSONRPC: &str = "2.0";
/// Most requests in one batch.
pub const MAX_BATCH: usize = 64;

/// JSON-RPC: the line was no JSON.
pub const PARSE_ERROR: i32 = -32700;
/// JSON-RPC: the JSON was no request.
pub const INVALID_REQUEST: i32 = -32600;
/// JSON-RPC: no such method.
pub const METHOD_NOT_FOUND: i32 = -32601;
/// JSON-RPC: the method has no such parameters.
pub const INVALID_PARAMS: i32 = -32602;
/// JSON-RPC: a mistake of the gateway's own.
pub const INTERNAL_ERROR: i32 = -32603;
/// Ours: there are as many clients as there may be; the connection is closed.
pub const TOO_MANY_CLIENTS: i32 = -32000;
/// Ours: too much is unread for another answer.
pub const BUSY: i32 = -32001;

/// A method's own: it cannot be done as things are, and nothing has changed.
pub const REFUSED: i32 = 1;

/// What can be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The names of all methods.
    ApiMethods,
    /// Versions of the protocol and the program.
    ApiVersion,
    /// Events from now on, over this connection.
    EventsSubscribe,
    /// What would become of a packet, and why.
    Explain,
    /// More tables in the policy.
    PolicyAdd,
    /// Keeps a change of the policy.
    PolicyConfirm,
    /// What is different in a policy file.
    PolicyDiff,
    /// How far a change is.
    PolicyJob,
    /// Another policy file.
    PolicyLoad,
    /// Fewer tables in the policy.
    PolicyRemove,
    /// Other tables in the policy.
    PolicyReplace,
    /// Takes back a change of the policy.
    PolicyRollback,
    /// The policy as text.
    PolicyShow,
    /// Drops by reason.
    ShowDrops,
    /// Neighbours, and whether their MAC addresses are known.
    ShowNeighbours,
    /// Policies, in the order in which they are asked.
    ShowPolicies,
    /// Ports, their link and their counters.
    ShowPorts,
    /// SAs.
    ShowSa,
    /// Tunnels and what fits into them.
    ShowTunnels,
    /// Workers, their lanes and cycles.
    ShowWorkers,
    /// Packets that were followed.
    TraceRead,
    /// Packets from now on, followed through the stages.
    TraceStart,
    /// No more of that.
    TraceStop,
}

/// A request that was understood and that the gateway has to answer, with its parameters.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// [`super::explain::Explanation`].
    Explain(Box<Ask>),
    /// [`JobReport`](super::change::report::JobReport).
    PolicyChange(Edit, ChangeSettings),
    /// A number: `generation`.
    PolicyConfirm,
    /// [`JobReport`](super::change::report::JobReport).
    PolicyJob(u64),
    /// [`JobReport`](super::change::report::JobReport): of `ChangeKind::Diff`, only what is different.
    PolicyLoad(PathBuf, ChangeKind, ChangeSettings),
    /// [`JobReport`](super::change::report::JobReport).
    PolicyRollback,
    /// [`PolicyTextReport`](super::change::report::PolicyTextReport).
    PolicyShow,
    /// [`super::report::DropsReport`].
    ShowDrops,
    /// [`super::report::NeighboursReport`].
    ShowNeighbours,
    /// [`super::policies::PoliciesReport`].
    ShowPolicies,
    /// [`super::report::PortsReport`].
    ShowPorts,
    /// [`super::report::SaReport`].
    ShowSa,
    /// [`super::report::TunnelsReport`].
    ShowTunnels,
    /// [`super::report::WorkersReport`].
    ShowWorkers,
    /// [`trace::Packets`].
    TraceRead(trace::Which),
    /// [`trace::Started`].
    TraceStart(Box<trace::Start>),
    /// [`trace::Stopped`].
    TraceStop(trace::Which),
}

/// Who answers a request.
enum Understood {
    /// The protocol does.
    Known(Value),
    /// The connection does.
    Subscribe(Vec<Kind>),
    /// The gateway does.
    Call(Call),
}

/// Parameters of methods that have none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoParams {}

/// Parameters of `events.subscribe`.
#[derive(Serialize, Deserialize, Default, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// What is wanted; without it everything is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kinds: Option<Vec<Kind>>,
}

impl Method {
    /// Every method, by name.
    pub const ALL: [Self; 23] = [
        Self::ApiMethods,
        Self::ApiVersion,
        Self::EventsSubscribe,
        Self::Explain,
        Self::PolicyAdd,
        Self::PolicyConfirm,
        Self::PolicyDiff,
        Self::PolicyJob,
        Self::PolicyLoad,
        Self::PolicyRemove,
        Self::PolicyReplace,
        Self::PolicyRollback,
        Self::PolicyShow,
        Self::ShowDrops,
        Self::ShowNeighbours,
        Self::ShowPolicies,
        Self::ShowPorts,
        Self::ShowSa,
        Self::ShowTunnels,
        Self::ShowWorkers,
        Self::TraceRead,
        Self::TraceStart,
        Self::TraceStop,
    ];

    /// The name on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ApiMethods => "api.methods",
            Self::ApiVersion => "api.version",
            Self::EventsSubscribe => "events.subscribe",
            Self::Explain => "explain",
            Self::PolicyAdd => "policy.add",
            Self::PolicyConfirm => "policy.confirm",
            Self::PolicyDiff => "policy.diff",
            Self::PolicyJob => "policy.job",
            Self::PolicyLoad => "policy.load",
            Self::PolicyRemove => "policy.remove",
            Self::PolicyReplace => "policy.replace",
            Self::PolicyRollback => "policy.rollback",
            Self::PolicyShow => "policy.show",
            Self::ShowDrops => "show.drops",
            Self::ShowNeighbours => "show.neighbours",
            Self::ShowPolicies => "show.policies",
            Self::ShowPorts => "show.ports",
            Self::ShowSa => "show.sa",
            Self::ShowTunnels => "show.tunnels",
            Self::ShowWorkers => "show.workers",
            Self::TraceRead => "trace.read",
            Self::TraceStart => "trace.start",
            Self::TraceStop => "trace.stop",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    /// Reads the parameters of this method.
    fn understand(self, params: Params) -> Result<Understood, ApiError> {
        let call = match self {
            Self::ApiMethods => {
                params.none()?;
                return Ok(Understood::Known(json!({ "methods": names() })));
            }
            Self::ApiVersion => {
                params.none()?;
                let simplon = env!("CARGO_PKG_VERSION");
                return Ok(Understood::Known(json!({ "api": API, "simplon": simplon })));
            }
            Self::EventsSubscribe => {
                let kinds = params.read::<Subscribe>()?.kinds;
                return Ok(Understood::Subscribe(
                    kinds.unwrap_or_else(|| Kind::ALL.to_vec()),
                ));
            }
            Self::Explain => params.read().map(|ask| Call::Explain(Box::new(ask))),
            Self::PolicyAdd => params
                .read::<TablesParams>()
                .map(|params| Call::PolicyChange(Edit::Add(params.text), params.settings)),
            Self::PolicyConfirm => params.none().map(|()| Call::PolicyConfirm),
            Self::PolicyDiff => params.read::<DiffParams>().and_then(|params| {
                load_call(params.path, ChangeKind::Diff, ChangeSettings::default())
            }),
            Self::PolicyJob => params
                .read::<JobParams>()
                .map(|params| Call::PolicyJob(params.job)),
            Self::PolicyLoad => params
                .read::<LoadParams>()
                .and_then(|params| load_call(params.path, ChangeKind::Load, params.settings)),
            Self::PolicyRemove => params
                .read::<RemoveParams>()
                .map(|params| Call::PolicyChange(Edit::Remove(params.names), params.settings)),
            Self::PolicyReplace => params
                .read::<TablesParams>()
                .map(|params| Call::PolicyChange(Edit::Replace(params.text), params.settings)),
            Self::PolicyRollback => params.none().map(|()| Call::PolicyRollback),
            Self::PolicyShow => params.none().map(|()| Call::PolicyShow),
            Self::ShowDrops => params.none().map(|()| Call::ShowDrops),
            Self::ShowNeighbours => params.none().map(|()| Call::ShowNeighbours),
            Self::ShowPolicies => params.none().map(|()| Call::ShowPolicies),
            Self::ShowPorts => params.none().map(|()| Call::ShowPorts),
            Self::ShowSa => params.none().map(|()| Call::ShowSa),
            Self::ShowTunnels => params.none().map(|()| Call::ShowTunnels),
            Self::ShowWorkers => params.none().map(|()| Call::ShowWorkers),
            Self::TraceRead => params.read().map(Call::TraceRead),
            Self::TraceStart => params.read().map(Call::TraceStart),
            Self::TraceStop => params.read().map(Call::TraceStop),
        };
        call.map(Understood::Call)
    }
}

fn load_call(path: PathBuf, kind: ChangeKind, settings: ChangeSettings) -> Result<Call, ApiError> {
    if path.is_absolute() {
        return Ok(Call::PolicyLoad(path, kind, settings));
    }
    let message =
        "params: `path` must be absolute: the gateway has another working directory than you";
    Err(ApiError::new(INVALID_PARAMS, message))
}

/// The parameters of a request, not yet read.
struct Params(Value);

impl Params {
    fn read<T: DeserializeOwned>(self) -> Result<T, ApiError> {
        if self.0.is_array() {
            let message = "parameters are taken by name: `params` must be an object";
            return Err(ApiError::new(INVALID_PARAMS, message));
        }
        serde_json::from_value(self.0)
            .map_err(|error| ApiError::new(INVALID_PARAMS, format!("params: {error}")))
    }

    fn none(self) -> Result<(), ApiError> {
        self.read::<NoParams>().map(|NoParams {}| ())
    }
}

/// Why a request was not answered.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// JSON-RPC's code, one of ours from -32000 down, or a method's own, which is positive.
    pub code: i32,
    /// For people.
    pub message: String,
    /// For programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

impl ApiError {
    /// An error without data.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            data: None,
        }
    }

    /// The same with data.
    #[must_use]
    pub fn with_data(self, data: Value) -> Self {
        Self {
            data: Some(data),
            ..self
        }
    }
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
    pub error: Option<ApiError>,
}

impl Response {
    fn new(id: Value, outcome: Result<Value, ApiError>) -> Self {
        let (result, error) = match outcome {
            Ok(result) => (Some(result), None),
            Err(error) => (None, Some(error)),
        };
        Self {
            jsonrpc: JSONRPC.into(),
            id,
            result,
            error,
        }
    }
}

/// One request as a line.
pub fn request_line(method: Method, params: &impl Serialize) -> String {
    let request =
        json!({ "jsonrpc": JSONRPC, "id": 1, "method": method.name(), "params": json!(params) });
    line_of(&request)
}

/// A line that says what is wrong to a client of whom no request was read.
pub fn error_line(error: ApiError) -> String {
    line_of(&Response::new(Value::Null, Err(error)))
}

fn line_of(message: &impl Serialize) -> String {
    text_of(message) + "\n"
}

/// JSON without a line end in it. What is written here has no keys that are not text, and so cannot fail.
fn text_of(message: &impl Serialize) -> String {
    serde_json::to_string(message).unwrap_or_default()
}

/// One line of a client's, and the answers to it so far. A batch is answered request by request, so that others can have
/// their turn between two.
pub struct Exchange {
    is_batch: bool,
    requests: vec::IntoIter<Value>,
    /// Answers as they go over the wire, without what is around a batch.
    answers: String,
    subscribed: Option<Vec<Kind>>,
}

impl Exchange {
    /// Reads one line, with its end or without.
    pub fn new(line: &[u8]) -> Self {
        match serde_json::from_slice(line) {
            Err(error) => Self::refused(PARSE_ERROR, format!("not JSON: {error}")),
            Ok(Value::Array(requests)) if requests.is_empty() => {
                Self::refused(INVALID_REQUEST, "a batch of no requests".into())
            }
            Ok(Value::Array(requests)) if requests.len() > MAX_BATCH => Self::refused(
                INVALID_REQUEST,
                format!(
                    "a batch of {} requests; {MAX_BATCH} are taken",
                    requests.len()
                ),
            ),
            Ok(Value::Array(requests)) => Self::of(true, requests),
            Ok(request) => Self::of(false, vec![request]),
        }
    }

    fn of(is_batch: bool, requests: Vec<Value>) -> Self {
        Self {
            is_batch,
            requests: requests.into_iter(),
            answers: String::new(),
            subscribed: None,
        }
    }

    /// Bytes of the answers so far.
    pub fn held(&self) -> usize {
        self.answers.len()
    }

    fn refused(code: i32, message: String) -> Self {
        Self {
            answers: text_of(&Response::new(
                Value::Null,
                Err(ApiError::new(code, message)),
            )),
            ..Self::of(false, Vec::new())
        }
    }

    /// Answers the next request. Returns whether there are more.
    pub fn step(&mut self, answer: &mut impl FnMut(Call) -> Result<Value, ApiError>) -> bool {
        if let Some(request) = self.requests.next()
            && let Some(response) = self.answer(request, answer)
        {
            if !self.answers.is_empty() {
                self.answers.push(',');
            }
            self.answers.push_str(&text_of(&response));
        }
        !self.requests.as_slice().is_empty()
    }

    /// The line that answers all of it, where there is anything to answer; and what was subscribed to with it.
    pub fn finish(self) -> (Option<String>, Option<Vec<Kind>>) {
        let mut line = self.answers;
        if line.is_empty() {
            return (None, self.subscribed);
        }
        if self.is_batch {
            line.insert(0, '[');
            line.push(']');
        }
        line.push('\n');
        (Some(line), self.subscribed)
    }

    fn answer(
        &mut self,
        request: Value,
        answer: &mut impl FnMut(Call) -> Result<Value, ApiError>,
    ) -> Option<Response> {
        let request = match Request::read(request) {
            Ok(request) => request,
            Err((id, error)) => return Some(Response::new(id, Err(error))),
        };
        let understood = match Method::from_name(&request.method) {
            Some(method) => method.understand(request.params),
            None => Err(ApiError::new(METHOD_NOT_FOUND, "no such method")
                .with_data(json!({ "methods": names() }))),
        };
        let outcome = match understood {
            Ok(Understood::Known(result)) => Ok(result),
            Ok(Understood::Subscribe(kinds)) => {
                let result = json!({ "kinds": kinds });
                self.subscribed = Some(kinds);
                Ok(result)
            }
            Ok(Understood::Call(call)) => answer(call),
            Err(error) => Err(error),
        };
        request.id.map(|id| Response::new(id, outcome))
    }
}

/// Answers one line at once. Nothing where it holds notifications alone.
pub fn answer_line(
    line: &[u8],
    mut answer: impl FnMut(Call) -> Result<Value, ApiError>,
) -> Option<String> {
    let mut exchange = Exchange::new(line);
    while exchange.step(&mut answer) {}
    exchange.finish().0
}

fn names() -> Vec<&'static str> {
    Method::ALL.iter().map(|method| method.name()).collect()
}

/// A request whose method is not yet looked up.
struct Request {
    /// `None` in a notification, which nobody answers.
    id: Option<Value>,
    method: String,
    params: Params,
}

impl Request {
    /// Reads a request; where it is none, returns the id to answer with as well.
    fn read(value: Value) -> Result<Self, (Value, ApiError)> {
        let wrong = |id: Option<Value>, message: &str| {
            let error = ApiError::new(INVALID_REQUEST, message);
            Err((id.unwrap_or_default(), error))
        };
        let Value::Object(mut fields) = value else {
            return wrong(None, "a request is an object");
        };
        let id = match fields.remove("id") {
            Some(Value::Array(_) | Value::Object(_) | Value::Bool(_)) => {
                return wrong(None, "`id` must be a string, a number or null");
            }
            id => id,
        };
        if fields.get("jsonrpc").and_then(Value::as_str) != Some(JSONRPC) {
            return wrong(id, "`jsonrpc` must be \"2.0\"");
        }
        let Some(Value::String(method)) = fields.remove("method") else {
            return wrong(id, "`method` must be a string");
        };
        let params = match fields.remove("params") {
            None => Value::Object(Map::new()),
            Some(params @ (Value::Object(_) | Value::Array(_))) => params,
            Some(_) => return wrong(id, "`params` must be an object"),
        };
        Ok(Self {
            id,
            method,
            params: Params(params),
        })
    }
}

#[cfg(test)]
#[path = "protocol/tests.rs"]
mod tests;

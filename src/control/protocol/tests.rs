use super::*;
use proptest::prelude::*;

/// The name of the call as its result, and an error of a method's own for one of them.
fn gateway(call: Call) -> Result<Value, ApiError> {
    match call {
        Call::ShowWorkers => Err(ApiError::new(7, "no workers").with_data(json!({ "count": 0 }))),
        call => Ok(format!("{call:?}").into()),
    }
}

fn said(line: &str) -> Option<Value> {
    let answer = answer_line(line.as_bytes(), gateway)?;
    assert_eq!(answer.find('\n'), Some(answer.len() - 1), "{answer}");
    Some(serde_json::from_str(&answer).expect("JSON"))
}

fn ask(line: &str) -> Value {
    said(line).expect("an answer")
}

fn code(line: &str) -> i64 {
    ask(line)["error"]["code"].as_i64().expect("a code")
}

/// What a method cannot do without.
fn parameters(method: Method) -> Value {
    match method {
        Method::PolicyAdd | Method::PolicyReplace => json!({ "text": "" }),
        Method::PolicyDiff | Method::PolicyLoad => json!({ "path": "/a.toml" }),
        Method::PolicyJob => json!({ "job": 1 }),
        Method::PolicyRemove => json!({ "names": ["a"] }),
        _ => json!({}),
    }
}

#[test]
fn changes_are_understood_with_their_settings() {
    let load = |params: Value| ask(&request_line(Method::PolicyLoad, &params));
    let settings = json!({ "fresh_keys": true, "confirm_s": 5 });
    let answer = load(json!({ "path": "/a.toml", "settings": settings }));
    let wanted = ChangeSettings {
        fresh_keys: true,
        confirm_s: Some(5),
        ..ChangeSettings::default()
    };
    let call = Call::PolicyLoad("/a.toml".into(), ChangeKind::Load, wanted);
    assert_eq!(answer["result"], format!("{call:?}"));
    for wrong in [
        json!({ "path": "a.toml" }),
        json!({ "path": "/a", "settings": { "x": 1 } }),
        json!({}),
    ] {
        assert_eq!(load(wrong)["error"]["code"], INVALID_PARAMS);
    }
}

#[test]
fn every_method_is_answered_with_its_id() {
    for method in Method::ALL {
        let answer = ask(&request_line(method, &parameters(method)));
        assert_eq!(answer["id"], 1);
        assert_eq!(
            answer.get("error").is_some(),
            method == Method::ShowWorkers,
            "{answer}"
        );
    }
    let version = ask(r#"{"jsonrpc":"2.0","method":"api.version","id":"a"}"#);
    assert_eq!(version["id"], "a");
    assert_eq!(
        version["result"],
        json!({ "api": API, "simplon": env!("CARGO_PKG_VERSION") })
    );
    let methods = ask(r#"{"jsonrpc":"2.0","method":"api.methods","id":null}"#);
    assert_eq!(methods["id"], Value::Null);
    assert_eq!(methods["result"]["methods"], json!(names()));
}

#[test]
fn every_method_is_in_the_documentation() {
    let documentation = include_str!("../../../docs/API.md");
    for name in names() {
        assert!(
            documentation.contains(&format!("### `{name}`")),
            "docs/API.md says nothing of {name}"
        );
    }
    for kind in Kind::ALL {
        assert!(
            documentation.contains(&format!("| `{}` |", kind.name())),
            "docs/API.md says nothing of {}",
            kind.name()
        );
    }
}

#[test]
fn methods_are_in_order_of_their_names() {
    assert!(names().is_sorted());
}

#[test]
fn garbage_is_answered_with_the_code_for_it() {
    for (line, wanted) in [
        ("", PARSE_ERROR),
        ("{", PARSE_ERROR),
        ("\"\u{0}\"", PARSE_ERROR),
        ("[]", INVALID_REQUEST),
        ("7", INVALID_REQUEST),
        ("{}", INVALID_REQUEST),
        (
            r#"{"jsonrpc":"1.0","method":"show.sa","id":7}"#,
            INVALID_REQUEST,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"show.sa","id":{}}"#,
            INVALID_REQUEST,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"show.sa","params":3,"id":7}"#,
            INVALID_REQUEST,
        ),
        (r#"{"jsonrpc":"2.0","method":1,"id":7}"#, INVALID_REQUEST),
        (
            r#"{"jsonrpc":"2.0","method":"drop.tables","id":7}"#,
            METHOD_NOT_FOUND,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"show.sa","params":[1],"id":7}"#,
            INVALID_PARAMS,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"show.sa","params":{"x":1},"id":7}"#,
            INVALID_PARAMS,
        ),
        (
            r#"{"jsonrpc":"2.0","method":"events.subscribe","params":{"kinds":["weather"]},"id":7}"#,
            INVALID_PARAMS,
        ),
    ] {
        assert_eq!(code(line), i64::from(wanted), "{line}");
    }
    let deep = "[".repeat(10_000);
    assert_eq!(code(&deep), i64::from(PARSE_ERROR));
}

#[test]
fn an_id_that_can_be_read_comes_back_with_an_error() {
    assert_eq!(ask(r#"{"jsonrpc":"2.0","id":7}"#)["id"], 7);
    assert_eq!(
        ask(r#"{"jsonrpc":"2.0","method":"none","id":7.5}"#)["id"],
        7.5
    );
    assert_eq!(ask(r#"{"jsonrpc":"2.0","id":[7]}"#)["id"], Value::Null);
}

#[test]
fn errors_of_a_method_carry_its_code_and_data() {
    let answer = ask(r#"{"jsonrpc":"2.0","method":"show.workers","id":7}"#);
    assert_eq!(
        answer["error"],
        json!({ "code": 7, "message": "no workers", "data": { "count": 0 } })
    );
}

//= https://www.jsonrpc.org/specification
//# The Server MUST NOT reply to a Notification, including those that are within a batch request.
#[test]
fn notifications_are_not_answered_whatever_comes_of_them() {
    for line in [
        r#"{"jsonrpc":"2.0","method":"show.sa"}"#,
        r#"{"jsonrpc":"2.0","method":"show.workers"}"#,
        r#"{"jsonrpc":"2.0","method":"none"}"#,
        r#"{"jsonrpc":"2.0","method":"show.sa","params":[1]}"#,
        r#"[{"jsonrpc":"2.0","method":"show.sa"},{"jsonrpc":"2.0","method":"none"}]"#,
    ] {
        assert_eq!(said(line), None, "{line}");
    }
}

#[test]
fn batches_are_answered_request_by_request() {
    let answers = ask(r#"[{"jsonrpc":"2.0","method":"show.sa","id":1},
            {"jsonrpc":"2.0","method":"show.drops"}, 3,
            {"jsonrpc":"2.0","method":"none","id":"x"}]"#);
    let answers = answers.as_array().expect("a batch");
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["result"], "ShowSa");
    assert_eq!(answers[1]["error"]["code"], INVALID_REQUEST);
    assert_eq!(answers[1]["id"], Value::Null);
    assert_eq!(answers[2]["id"], "x");
    let many = |count: usize| json!(vec![1; count]).to_string();
    assert!(ask(&many(MAX_BATCH)).is_array());
    assert!(ask(&many(MAX_BATCH + 1)).is_object());
}

#[test]
fn subscriptions_are_those_asked_for_or_all() {
    let subscribed = |params: Value| {
        let mut exchange = Exchange::new(request_line(Method::EventsSubscribe, &params).as_bytes());
        exchange.step(&mut gateway);
        exchange.finish().1
    };
    assert_eq!(subscribed(json!({})), Some(Kind::ALL.to_vec()));
    assert_eq!(
        subscribed(json!({ "kinds": ["sa_lifetime"] })),
        Some(vec![Kind::SaLifetime])
    );
    assert_eq!(subscribed(json!({ "kinds": ["weather"] })), None);
}

/// What every line of an answer has to be: responses, each with a result or an error and an id.
fn is_valid(answer: &Value) -> bool {
    let one = |answer: &Value| {
        answer["jsonrpc"] == JSONRPC
            && answer.get("id").is_some()
            && (answer.get("result").is_some() != answer.get("error").is_some())
    };
    match answer {
        Value::Array(answers) => !answers.is_empty() && answers.iter().all(one),
        answer => one(answer),
    }
}

/// JSON that is nearly a request.
fn nearly() -> impl Strategy<Value = Value> {
    let id = prop_oneof![
        Just(json!({})),
        Just(json!({"id": 1})),
        Just(json!({"id": null})),
        Just(json!({"id": [1]})),
    ];
    let method = prop_oneof![
        proptest::sample::select(names()).prop_map(|name| json!({ "method": name })),
        Just(json!({"method": "none"})),
        Just(json!({"method": 1})),
        Just(json!({})),
    ];
    let params = prop_oneof![
        Just(json!({})),
        Just(json!({"params": {}})),
        Just(json!({"params": []})),
        Just(json!({"params": {"kinds": ["link", "sa_lifetime"]}})),
        Just(json!({"params": {"kinds": 3}})),
        Just(json!({"params": null})),
    ];
    let version = prop_oneof![Just(json!({"jsonrpc": "2.0"})), Just(json!({"jsonrpc": 2}))];
    (id, method, params, version).prop_map(|(id, method, params, version)| {
        let mut all = Map::new();
        for part in [id, method, params, version] {
            if let Value::Object(part) = part {
                all.extend(part);
            }
        }
        Value::Object(all)
    })
}

proptest! {
    #[test]
    fn any_bytes_get_a_valid_answer_or_none(line in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Some(answer) = answer_line(&line, gateway) {
            prop_assert!(is_valid(&serde_json::from_str(&answer).expect("JSON")));
        }
    }

    #[test]
    fn what_is_nearly_a_request_gets_a_valid_answer_or_none(
        requests in proptest::collection::vec(nearly(), 1..5),
        is_batch in any::<bool>(),
    ) {
        let line = if is_batch { json!(requests) } else { requests[0].clone() };
        let answer = said(&line.to_string());
        prop_assert!(answer.as_ref().is_none_or(is_valid), "{line} {answer:?}");
    }
}

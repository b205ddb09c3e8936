//! What is held of everything that comes over the control socket: every line gets a valid JSON-RPC answer of one line, or none.
//!
//! The input is cut into lines as the socket does it; the gateway behind answers nothing of worth.

use serde_json::{Value, json};
use simplon::control::protocol::{ApiError, Call, MAX_BATCH, answer_line};

fn gateway(call: Call) -> Result<Value, ApiError> {
    match call {
        Call::ShowSa => Err(ApiError::new(1, "nothing").with_data(json!({ "sas": 0 }))),
        call => Ok(json!({ "call": format!("{call:?}") })),
    }
}

fn check_answer(answer: &Value) {
    assert_eq!(answer["jsonrpc"], "2.0");
    let id = answer.get("id").expect("an id");
    assert!(id.is_null() || id.is_string() || id.is_number());
    assert!(answer.get("result").is_some() != answer.get("error").is_some());
    if let Some(error) = answer.get("error") {
        assert!(error["code"].is_i64() && error["message"].is_string());
    }
}

/// Panics where it does not hold.
pub(crate) fn check(input: &[u8]) {
    for line in input.split_inclusive(|byte| *byte == b'\n') {
        let Some(answer) = answer_line(line, gateway) else {
            continue;
        };
        assert_eq!(answer.find('\n'), Some(answer.len() - 1));
        match serde_json::from_str(&answer).expect("JSON") {
            Value::Array(answers) => {
                assert!((1..=MAX_BATCH).contains(&answers.len()));
                answers.iter().for_each(check_answer);
            }
            answer => check_answer(&answer),
        }
    }
}

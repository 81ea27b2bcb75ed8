//! A thinking applier in Rust, without any SDK: what `model(high)` or `model(8192)` asks for becomes `thinking` in the
//! body of an Anthropic upstream, with a budget the model takes.
mod jackfield;

use jackfield::{body_of, json_body, Answer, Call, Error, Plugin};
use serde_json::{json, Value};

/// What is left for the answer itself when the client's limit leaves nothing.
const ANSWER_TOKENS: i64 = 1024;

fn main() {
    plugin().run()
}

fn plugin() -> Plugin {
    Plugin::new("rust-thinking", "1.0.0").on("plugin.register", register).on("thinking.apply", apply)
}

fn register(call: &Call) -> Answer {
    Ok(json!({"thinking_provider": call.config()["provider"].as_str().unwrap_or("claude")}))
}

fn apply(call: &Call) -> Answer {
    let mut body = body_of(&call.params["body"]);
    if !body.is_object() {
        return Err(Error::new(400, "invalid_body", "the body is no JSON object"));
    }
    let budget = budget_of(&call.params["config"], &call.params["model"]["thinking"]);
    call.log("info", "thinking.applied", json!({"budget_tokens": budget}));
    match budget {
        None => drop(body.as_object_mut().expect("an object").remove("thinking")),
        Some(0) => body["thinking"] = json!({"type": "disabled"}),
        Some(budget) => {
            body["thinking"] = json!({"type": "enabled", "budget_tokens": budget});
            // The budget is part of max_tokens and has to be smaller.
            if body["max_tokens"].as_i64().unwrap_or(0) <= budget {
                body["max_tokens"] = json!(budget + ANSWER_TOKENS);
            }
        }
    }
    Ok(json!({"body": json_body(body)}))
}

/// Tokens for thinking: None lets the upstream decide, 0 is none at all.
fn budget_of(asked: &Value, support: &Value) -> Option<i64> {
    let budget = match asked["mode"].as_str().unwrap_or("auto") {
        "none" => return Some(0),
        "budget" => asked["budget"].as_i64()?,
        "level" => match asked["level"].as_str().unwrap_or("") {
            "minimal" => 1024,
            "low" => 4096,
            "medium" => 8192,
            "high" => 16384,
            _ => 32768,
        },
        _ => return None,
    };
    let least = support["min"].as_i64().unwrap_or(1024);
    let most = support["max"].as_i64().unwrap_or(i64::MAX);
    Some(budget.min(most).max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(config: Value, body: Value) -> Value {
        let params =
            json!({"config": config, "model": {"id": "m", "thinking": {"max": 20000}}, "body": {"json": body}});
        let (answer, _) = plugin().try_call("thinking.apply", params, json!({}));
        answer.unwrap()["body"]["json"].clone()
    }

    #[test]
    fn a_budget_stays_within_what_the_model_takes() {
        for (asked, given) in [(8192, 8192), (100, 1024), (90000, 20000)] {
            let body = applied(json!({"mode": "budget", "budget": asked}), json!({"max_tokens": 64000}));
            assert_eq!(body["thinking"], json!({"type": "enabled", "budget_tokens": given}));
            assert_eq!(body["max_tokens"], 64000);
        }
    }

    #[test]
    fn a_limit_that_leaves_nothing_for_the_answer_is_raised() {
        let body = applied(json!({"mode": "level", "level": "low"}), json!({"max_tokens": 100}));
        assert_eq!(body, json!({"max_tokens": 5120, "thinking": {"type": "enabled", "budget_tokens": 4096}}));
    }

    #[test]
    fn none_switches_it_off_and_auto_leaves_it_to_the_upstream() {
        assert_eq!(applied(json!({"mode": "none"}), json!({}))["thinking"], json!({"type": "disabled"}));
        assert_eq!(applied(json!({"mode": "auto"}), json!({"thinking": {}})), json!({}));
    }
}

//! Reports and differences are what docs/json-schema.json says.

use jsonschema::Validator;

use super::*;

/// Objects whose keys are names that the kernel gives.
const MAPS: [&str; 5] = ["parts", "pressure", "vmstat", "events", "events_grown"];

fn validator() -> Validator {
    let schema = include_str!("../../../../docs/json-schema.json");
    let schema = serde_json::from_str(schema).expect("the schema is JSON");
    jsonschema::validator_for(&schema).expect("a schema")
}

fn parsed_diff(before: &Recording, after: &Recording) -> Value {
    let mut out = Vec::new();
    diff(before, after).json(&mut out);
    serde_json::from_slice(&out).expect("JSON")
}

/// Threads, processes and cgroups that are too many to be told apart, and a target that is the host.
fn others() -> Value {
    let mut findings = findings(&[rich(), recording(&meta("a", false), many(3, false))]);
    let stats = findings.stats;
    findings.other_threads = Some(stats);
    findings.other_processes = Some(stats);
    findings.other_cgroups = Some(stats);
    parsed(&findings)
}

fn all() -> Vec<Value> {
    let [before, after] = before_and_after();
    vec![
        parsed(&findings(&[rich()])),
        others(),
        parsed(&findings(&[recording(&meta("a", true), [])])),
        parsed(&Findings::gather(&[], &[], 3, &AtomicU64::new(0))),
        parsed_diff(&before, &after),
        parsed_diff(&rich(), &recording(&meta("a", true), [])),
    ]
}

#[test]
fn every_report_is_as_the_schema_says() {
    let validator = validator();
    for object in all() {
        let errors: Vec<_> = validator.iter_errors(&object).map(|it| it.to_string()).collect();
        assert!(errors.is_empty(), "{errors:?}: {object}");
    }
}

/// The places of all objects whose keys are those of the schema.
fn objects(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.push(at.to_owned());
            let fields = fields.iter().filter(|(key, _)| !MAPS.contains(&key.as_str()));
            fields.for_each(|(key, field)| objects(field, &format!("{at}/{key}"), found));
        }
        // All of them are alike.
        Value::Array(items) => {
            items.iter().take(1).for_each(|item| objects(item, &format!("{at}/0"), found));
        }
        _ => {}
    }
}

#[test]
fn the_schema_is_strict_on_reports() {
    let validator = validator();
    let [before, after] = before_and_after();
    for whole in [others(), parsed_diff(&before, &after)] {
        let mut places = Vec::new();
        objects(&whole, "", &mut places);
        assert!(places.len() > 10, "{places:?}");
        for place in places {
            let fields = whole.pointer(&place).and_then(Value::as_object).expect("an object");
            for name in fields.keys() {
                let mut renamed = fields.clone();
                let value = renamed.remove(name).unwrap_or_default();
                renamed.insert(format!("{name}_"), value.clone());
                let mut added = fields.clone();
                added.insert(format!("{name}_"), value);
                for changed in [renamed, added] {
                    let mut other = whole.clone();
                    *other.pointer_mut(&place).expect("it is there") = changed.into();
                    assert!(!validator.is_valid(&other), "{place}: {name}");
                }
            }
        }
    }
}

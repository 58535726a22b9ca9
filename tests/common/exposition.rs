//! Reads the text format of Prometheus as strictly as the documentation writes it down
//! (“Exposition formats”, “Text-based format”, version 0.0.4).

use std::collections::{BTreeMap, BTreeSet};

/// Returns every sample by its name and labels as they are written, or what is wrong.
pub(crate) fn read(text: &str) -> Result<BTreeMap<String, f64>, String> {
    let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
    let (mut helped, mut current) = (BTreeSet::new(), String::new());
    if !text.ends_with('\n') {
        return Err("the last line does not end".to_owned());
    }
    for line in text.lines() {
        let wrong = |what: &str| Err(format!("{what}: {line}"));
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let Some((name, help)) = rest.split_once(' ') else { return wrong("no help") };
            if !is_name(name) || help.is_empty() || !helped.insert(name.to_owned()) {
                return wrong("help that is empty or there twice");
            }
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { return wrong("no type") };
            let is_kind = ["counter", "gauge", "histogram"].contains(&kind);
            if !helped.contains(name) || !is_kind {
                return wrong("a type without help, or an unknown one");
            }
            if kind == "counter" && !name.ends_with("_total") {
                return wrong("a counter that is not called so");
            }
            if families.insert(name.to_owned(), kind.to_owned()).is_some() {
                return wrong("a type twice");
            }
            name.clone_into(&mut current);
            continue;
        }
        let Some((series, value)) = line.rsplit_once(' ') else { return wrong("no value") };
        let name = series.split('{').next().unwrap_or_default();
        let base = match families.get(&current).map(String::as_str) {
            Some("histogram") => ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|suffix| name.strip_suffix(suffix))
                .unwrap_or(name),
            _ => name,
        };
        if !is_name(name) || base != current {
            return wrong("a sample that is not below its type");
        }
        if !are_labels(&series[name.len()..]) {
            return wrong("labels that are none");
        }
        let Ok(value) = value.parse::<f64>() else { return wrong("a value that is no number") };
        if samples.insert(series.to_owned(), value).is_some() {
            return wrong("a sample twice");
        }
    }
    for (name, _) in families.iter().filter(|(_, kind)| *kind == "histogram") {
        check_histogram(name, &samples)?;
    }
    Ok(samples)
}

fn check_histogram(name: &str, samples: &BTreeMap<String, f64>) -> Result<(), String> {
    let begin = format!("{name}_bucket{{le=\"");
    let mut buckets: Vec<(f64, f64)> = Vec::new();
    for (series, value) in samples.range(begin.clone()..).take_while(|(s, _)| s.starts_with(&begin))
    {
        let bound = series[begin.len()..].trim_end_matches("\"}");
        buckets.push((bound.parse().map_err(|_| format!("{name}: bound {bound}"))?, *value));
    }
    buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
    let is_sorted = buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1);
    let count = samples.get(&format!("{name}_count"));
    let last = buckets.last();
    let is_whole = last.is_some_and(|(bound, value)| bound.is_infinite() && Some(value) == count);
    if is_sorted && is_whole && samples.contains_key(&format!("{name}_sum")) {
        Ok(())
    } else {
        Err(format!("{name} is no histogram: {buckets:?}"))
    }
}

fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic() || b"_:".contains(&byte))
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_:".contains(&byte))
}

/// Tells whether a text is nothing, or labels in braces.
fn are_labels(text: &str) -> bool {
    if text.is_empty() {
        return true;
    }
    let Some(mut rest) = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) else {
        return false;
    };
    loop {
        let Some((name, behind)) = rest.split_once("=\"") else { return false };
        if !is_name(name) {
            return false;
        }
        let mut escaped = false;
        let end = behind.char_indices().find(|(_, character)| {
            let ends = *character == '"' && !escaped;
            escaped = *character == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return false };
        rest = &behind[end + 1..];
        match rest.strip_prefix(',') {
            None => return rest.is_empty(),
            Some(more) => rest = more,
        }
    }
}

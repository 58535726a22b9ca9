//! What a derivation asks of the machine that builds it.

use super::Derivation;

/// The attribute that names the features, in the environment and in structured attributes.
const REQUIRED_SYSTEM_FEATURES: &str = "requiredSystemFeatures";

impl Derivation<'_> {
    /// Returns the features that an agent must have to build this, such as `kvm`, sorted, each once.
    ///
    /// They come from the environment variable `requiredSystemFeatures`, or, when the derivation
    /// has structured attributes (`__json`), from the attribute of that name alone, as in Nix
    /// `src/libstore/parsed-derivations.cc`. Attributes that are no JSON name no features: the
    /// build of such a derivation fails wherever it is tried. A feature that is not UTF-8 is
    /// returned escaped, so that no agent has it.
    #[must_use]
    pub fn required_system_features(&self) -> Vec<String> {
        let mut features = match self.env(b"__json") {
            Some(json) => structured_features(json),
            None => split_features(self.env(REQUIRED_SYSTEM_FEATURES.as_bytes()).unwrap_or(b"")),
        };
        features.sort_unstable();
        features.dedup();
        features
    }
}

/// Returns the words of an environment variable.
fn split_features(value: &[u8]) -> Vec<String> {
    let words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let text = |word: &[u8]| match std::str::from_utf8(word) {
        Ok(text) => text.to_owned(),
        Err(_) => word.escape_ascii().to_string(),
    };
    words.map(text).collect()
}

/// Returns the strings of the attribute in structured attributes.
fn structured_features(json: &[u8]) -> Vec<String> {
    // serde_json bounds its own recursion, and the file bounds the length.
    let Ok(attributes) = serde_json::from_slice::<serde_json::Value>(json) else {
        return Vec::new();
    };
    match attributes.get(REQUIRED_SYSTEM_FEATURES) {
        Some(serde_json::Value::String(words)) => split_features(words.as_bytes()),
        Some(serde_json::Value::Array(items)) => {
            items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    }
}

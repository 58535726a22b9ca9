//! Any MessagePack value in the diagnostic notation of RFC 8949 section 8.

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use std::fmt::{self, Write as _};

/// A value as people read it.
pub(crate) struct Diagnostic(String);

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Diagnostic {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of MessagePack")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<String, E> {
        Ok(value.to_string())
    }

    fn visit_unit<E: Error>(self) -> Result<String, E> {
        Ok("null".to_owned())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<String, E> {
        Ok(format!("{value:?}"))
    }

    fn visit_bytes<E: Error>(self, value: &[u8]) -> Result<String, E> {
        let mut text = "h'".to_owned();
        for byte in value {
            write!(text, "{byte:02x}").map_err(E::custom)?;
        }
        text.push('\'');
        Ok(text)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<String, A::Error> {
        let mut items = Vec::new();
        while let Some(Diagnostic(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(format!("[{}]", items.join(", ")))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<String, A::Error> {
        let mut items = Vec::new();
        while let Some((Diagnostic(key), Diagnostic(value))) = map.next_entry()? {
            items.push(format!("{key}: {value}"));
        }
        Ok(format!("{{{}}}", items.join(", ")))
    }
}

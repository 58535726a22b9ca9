//! Writes `.drv` files, and the variants of them that are hashed.

use super::Derivation;
use crate::core::aterm::{write_list, write_string};

/// What stands where a derivation's own output paths are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnOutputs {
    /// The paths.
    Shown,
    /// Nothing: they are about to be computed.
    Blanked,
}

impl Derivation<'_> {
    /// Returns the bytes of the `.drv` file. They are those that the derivation was parsed from.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let inputs = self.input_derivations.iter();
        self.write(
            inputs.map(|(path, names)| (path.to_string(), names.as_slice())),
            OwnOutputs::Shown,
        )
    }

    /// Returns the text of the derivation with these input derivations and their output names.
    pub(super) fn write<Name: AsRef<str>>(
        &self,
        inputs: impl Iterator<Item = (String, impl IntoIterator<Item = Name>)>,
        own_outputs: OwnOutputs,
    ) -> Vec<u8> {
        let blanked = own_outputs == OwnOutputs::Blanked;
        let mut out = b"Derive(".to_vec();
        write_list(&mut out, &self.outputs, |out, output| {
            let path = if blanked { String::new() } else { output.path.to_string() };
            let fields = [&output.name, &path, &output.hash_algorithm, &output.hash];
            write_tuple(out, fields.map(String::as_bytes));
        });
        out.push(b',');
        write_list(&mut out, inputs, |out, (input, names)| {
            out.push(b'(');
            write_string(out, input.as_bytes());
            out.push(b',');
            write_list(out, names, |out, name| write_string(out, name.as_ref().as_bytes()));
            out.push(b')');
        });
        out.push(b',');
        write_list(&mut out, &self.input_sources, |out, path| {
            write_string(out, path.to_string().as_bytes());
        });
        out.push(b',');
        write_string(&mut out, self.system.as_bytes());
        out.push(b',');
        write_string(&mut out, &self.builder);
        out.push(b',');
        write_list(&mut out, &self.arguments, |out, argument| write_string(out, argument));
        out.push(b',');
        write_list(&mut out, &self.env, |out, (name, value)| {
            let own = blanked && self.has_output(name);
            write_tuple(out, [name.as_ref(), if own { b"" } else { value.as_ref() }]);
        });
        out.push(b')');
        out
    }

    /// Tells whether one of the outputs has this name.
    fn has_output(&self, name: &[u8]) -> bool {
        self.outputs.binary_search_by(|output| output.name.as_bytes().cmp(name)).is_ok()
    }
}

/// Appends strings between parentheses.
fn write_tuple<const N: usize>(out: &mut Vec<u8>, fields: [&[u8]; N]) {
    for (place, field) in fields.into_iter().enumerate() {
        out.push(if place == 0 { b'(' } else { b',' });
        write_string(out, field);
    }
    out.push(b')');
}

//! The hash of a derivation “modulo” its fixed outputs, and the output paths that follow from it.
//!
//! Two derivations that differ only in how a fixed output somewhere below them is fetched have the
//! same hash, and so the same output paths.
//! Source: Nix `src/libstore/derivations.cc` (`hashDerivationModulo`), Guix
//! `guix/derivations.scm` (`derivation/masked-inputs`).

use super::{Derivation, DerivationError, FixedOutput, Output, write::OwnOutputs};
use crate::core::{
    content::fixed_output_path,
    hash::Sha256,
    store_path::{StoreDir, StorePath},
};
use std::collections::{BTreeMap, BTreeSet};

/// Finds the hash modulo of an input derivation, or `None` when it is not known.
type InputHashes<'f> = dyn FnMut(&StorePath) -> Option<Sha256> + 'f;

impl Derivation<'_> {
    /// Returns the hash that stands for this derivation in those that depend on it.
    ///
    /// `input` is asked for the same hash of each input derivation, so go through a graph from its
    /// sources upwards and keep the hashes. Fixed-output derivations ask for none.
    ///
    /// # Errors
    /// [`DerivationError::MissingInput`] for the first input that `input` does not know.
    pub fn hash_modulo(&self, input: &mut InputHashes<'_>) -> Result<Sha256, DerivationError> {
        match self.outputs.as_slice() {
            [Output { path, hash_algorithm, hash, .. }] if !hash.is_empty() => {
                Ok(Sha256::of(format!("fixed:out:{hash_algorithm}:{hash}:{path}").as_bytes()))
            }
            _ => self.hash_with_inputs(input, OwnOutputs::Shown),
        }
    }

    /// Proves that every output has the path that follows from the derivation, and that the
    /// environment variable named after it, if there is one, holds that path.
    ///
    /// `drv_name` is the name of the `.drv` path without its `.drv`. `input` is as for
    /// [`Derivation::hash_modulo`].
    ///
    /// # Errors
    /// [`DerivationError::MissingInput`] when `input` does not know an input,
    /// [`DerivationError::OutputPath`], [`DerivationError::OutputVariable`], or
    /// [`DerivationError::Path`] when a name is too long: refuse the derivation.
    pub fn verify_outputs(
        &self,
        drv_name: &str,
        input: &mut InputHashes<'_>,
    ) -> Result<(), DerivationError> {
        let dir = self.store_dir();
        if let Some(fixed) = self.fixed_output() {
            let path = fixed_output_path(
                dir,
                drv_name,
                fixed.recursive,
                &fixed.algorithm,
                &fixed.hash_hex,
            )?;
            return self.outputs.iter().try_for_each(|output| self.check(output, path.clone()));
        }
        let hash = self.hash_with_inputs(input, OwnOutputs::Blanked)?;
        self.outputs.iter().try_for_each(|output| {
            self.check(output, output_path(dir, drv_name, &output.name, &hash)?)
        })
    }

    /// Gives every output the path that follows from the derivation, in the list of outputs and in
    /// the environment variables named after them; whatever paths stood there before do not
    /// count. This is how a derivation is written rather than checked.
    ///
    /// `drv_name` and `input` are as for [`Derivation::verify_outputs`].
    ///
    /// # Errors
    /// As for [`Derivation::verify_outputs`], except for differences.
    pub fn compute_outputs(
        &mut self,
        drv_name: &str,
        input: &mut InputHashes<'_>,
    ) -> Result<(), DerivationError> {
        let dir = self.store_dir().clone();
        let fixed = self.fixed_output();
        // A fixed output's path does not depend on this; its inputs need not be known then.
        let hash = match fixed {
            Some(_) => Sha256::of(b""),
            None => self.hash_with_inputs(input, OwnOutputs::Blanked)?,
        };
        for output in &mut self.outputs {
            output.path = match &fixed {
                Some(FixedOutput { recursive, algorithm, hash_hex }) => {
                    fixed_output_path(&dir, drv_name, *recursive, algorithm, hash_hex)?
                }
                None => output_path(&dir, drv_name, &output.name, &hash)?,
            };
            let path = output.path.to_string().into_bytes();
            for (name, value) in &mut self.env {
                if name.as_ref() == output.name.as_bytes() {
                    *value = path.clone().into();
                }
            }
        }
        Ok(())
    }

    /// Compares what the derivation says of `output` with its computed path.
    fn check(&self, output: &Output, computed: StorePath) -> Result<(), DerivationError> {
        if output.path != computed {
            let (output, claimed) = (output.name.clone(), output.path.clone());
            let computed = Box::new(computed);
            return Err(DerivationError::OutputPath { output, claimed, computed });
        }
        // Its value is not covered by the hash of an output path, so it must be looked at.
        match self.env(output.name.as_bytes()) {
            Some(value) if value != computed.to_string().as_bytes() => {
                Err(DerivationError::OutputVariable { output: output.name.clone(), path: computed })
            }
            _ => Ok(()),
        }
    }

    /// Hashes the text in which the hashes of the input derivations stand for their paths.
    ///
    /// Inputs with the same hash become one, with the output names of all. Nix 2.8 does so,
    /// while older versions kept the names of the last one only; that makes a difference where
    /// inputs that differ in nothing but their downloads are used for different outputs.
    fn hash_with_inputs(
        &self,
        input: &mut InputHashes<'_>,
        own_outputs: OwnOutputs,
    ) -> Result<Sha256, DerivationError> {
        let mut inputs: BTreeMap<Sha256, BTreeSet<&str>> = BTreeMap::new();
        for (path, names) in &self.input_derivations {
            let hash =
                input(path).ok_or_else(|| DerivationError::MissingInput { path: path.clone() })?;
            inputs.entry(hash).or_default().extend(names.iter().map(String::as_str));
        }
        // Hashes in the order of their bytes are also in that of their hexadecimal texts.
        let inputs = inputs.into_iter().map(|(hash, names)| (hash.hex(), names));
        Ok(Sha256::of(&self.write(inputs, own_outputs)))
    }
}

/// Returns the path of an output of a derivation that is not fixed.
fn output_path(
    dir: &StoreDir,
    drv_name: &str,
    output: &str,
    hash: &Sha256,
) -> Result<StorePath, DerivationError> {
    let kind = format!("output:{output}");
    let path = match output {
        "out" => dir.make_path(&kind, hash, drv_name),
        _ => dir.make_path(&kind, hash, &format!("{drv_name}-{output}")),
    };
    Ok(path?)
}

//! The graph that the demo builds: a chain, a diamond, several outputs, and a failing build with a
//! dependent. Its builders need nothing but a POSIX shell.

use crate::{
    core::{
        derivation::{Derivation, DerivationError, Output, derivation_path},
        hash::Sha256,
        store_path::{InvalidStorePath, PathHash, StoreDir, StorePath},
    },
    formats::{
        export::{entry_begin, entry_trailer, stream_end},
        nar::{NarWriteError, NarWriter, Regular},
    },
};
use std::collections::BTreeMap;

/// Why a graph could not be written.
#[derive(Debug, thiserror::Error)]
pub enum GraphError {
    /// A derivation is not possible.
    #[error("a derivation of the demo is wrong")]
    Derivation(#[from] DerivationError),
    /// A path is not possible.
    #[error("a path of the demo is wrong")]
    Path(#[from] InvalidStorePath),
    /// A nar could not be written.
    #[error("a nar of the demo could not be written")]
    Nar(#[from] NarWriteError),
}

/// What becomes of a build of the demo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It succeeds.
    Success,
    /// Its builder fails.
    Failure,
    /// It is never tried, because an input fails.
    Blocked,
}

/// One derivation of the demo.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its path.
    pub path: StorePath,
    /// Its text.
    pub text: Vec<u8>,
    /// What the text says.
    pub derivation: Derivation<'static>,
    /// What becomes of it.
    pub expected: Expected,
}

/// A graph that is being written, inputs first.
#[derive(Debug)]
pub struct Graph {
    dir: StoreDir,
    system: String,
    /// Makes the paths of this run differ from those of any other.
    salt: String,
    members: Vec<Member>,
    modulos: BTreeMap<StorePath, Sha256>,
}

/// An output that another derivation uses: which derivation, and which of its outputs.
type Use<'a> = (&'a StorePath, &'a str);

impl Graph {
    /// Writes the graph of the demo.
    ///
    /// # Errors
    /// [`GraphError`].
    pub fn write(dir: StoreDir, system: String, salt: String) -> Result<Self, GraphError> {
        let mut graph = Self { dir, system, salt, members: Vec::new(), modulos: BTreeMap::new() };
        let good = Expected::Success;
        let mut link = graph.shell("chain-1", READ_INPUTS, &["out"], &[], good)?;
        for number in 2..=4 {
            let name = format!("chain-{number}");
            link = graph.shell(&name, READ_INPUTS, &["out"], &[(&link, "out")], good)?;
        }
        let left = graph.shell("diamond-left", READ_INPUTS, &["out"], &[(&link, "out")], good)?;
        let right = graph.shell("diamond-right", READ_INPUTS, &["out"], &[(&link, "out")], good)?;
        let tip = graph.shell(
            "diamond-tip",
            READ_INPUTS,
            &["out"],
            &[(&left, "out"), (&right, "out")],
            good,
        )?;
        let several =
            graph.shell("several", WRITE_THREE, &["doc", "lib", "out"], &[(&tip, "out")], good)?;
        graph.shell("uses-lib", READ_INPUTS, &["out"], &[(&several, "lib")], good)?;
        let failing =
            graph.shell("failing", FAIL, &["out"], &[(&link, "out")], Expected::Failure)?;
        graph.shell(
            "needs-failing",
            READ_INPUTS,
            &["out"],
            &[(&failing, "out")],
            Expected::Blocked,
        )?;
        Ok(graph)
    }

    /// Returns all derivations, inputs first.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the derivations as an export stream.
    ///
    /// # Errors
    /// [`GraphError::Nar`].
    pub fn export(&self) -> Result<Vec<u8>, GraphError> {
        let mut stream = Vec::new();
        for member in &self.members {
            stream.extend(entry_begin());
            let mut nar = NarWriter::new(&mut stream);
            nar.begin()?;
            nar.regular(Regular { executable: false, size: member.text.len() as u64 })?;
            nar.content(&member.text)?;
            nar.finish()?;
            let references = member.derivation.closure_references();
            stream.extend(entry_trailer(&member.path, &references, None));
        }
        stream.extend(stream_end());
        Ok(stream)
    }

    /// Adds a derivation whose builder is a shell script.
    fn shell(
        &mut self,
        name: &str,
        script: &str,
        outputs: &[&str],
        inputs: &[Use<'_>],
        expected: Expected,
    ) -> Result<StorePath, GraphError> {
        let used: Vec<String> =
            inputs.iter().filter_map(|(path, output)| self.output(path, output)).collect();
        let blank = self.dir.path(PathHash::from_bytes([0; 20]), name)?;
        let mut env: BTreeMap<String, String> = [
            ("builder", "/bin/sh"),
            ("inputs", &used.join(" ")),
            ("name", name),
            ("salt", &self.salt),
            ("system", &self.system),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        env.extend(outputs.iter().map(|output| ((*output).to_owned(), String::new())));
        let mut input_derivations: BTreeMap<StorePath, Vec<String>> = BTreeMap::new();
        for (path, output) in inputs {
            input_derivations.entry((*path).clone()).or_default().push((*output).to_owned());
        }
        let mut derivation = Derivation {
            outputs: outputs
                .iter()
                .map(|output| Output {
                    name: (*output).to_owned(),
                    path: blank.clone(),
                    hash_algorithm: String::new(),
                    hash: String::new(),
                })
                .collect(),
            input_derivations: input_derivations.into_iter().collect(),
            input_sources: Vec::new(),
            system: self.system.clone(),
            builder: b"/bin/sh".into(),
            arguments: vec![b"-c".into(), script.as_bytes().to_vec().into()],
            env: env
                .into_iter()
                .map(|(name, value)| (name.into_bytes().into(), value.into_bytes().into()))
                .collect(),
        };
        let modulos = &self.modulos;
        let mut modulo_of = |path: &StorePath| modulos.get(path).copied();
        derivation.compute_outputs(name, &mut modulo_of)?;
        let modulo = derivation.hash_modulo(&mut modulo_of)?;
        let text = derivation.to_bytes();
        let file_name = format!("{name}.drv");
        let references = derivation.closure_references();
        let path = derivation_path(&self.dir, &file_name, &text, &references)?;
        self.modulos.insert(path.clone(), modulo);
        self.members.push(Member { path: path.clone(), text, derivation, expected });
        Ok(path)
    }

    /// Returns the path of a member's output.
    fn output(&self, path: &StorePath, output: &str) -> Option<String> {
        let member = self.members.iter().find(|member| member.path == *path)?;
        let output = member.derivation.outputs.iter().find(|other| other.name == output)?;
        Some(output.path.to_string())
    }
}

/// Copies every line of every input, so that references are real.
const READ_INPUTS: &str = r#"echo "building $name"
echo "$name" > "$out"
for input in $inputs; do
  echo "reading $input"
  echo "from $input" >> "$out"
  while read -r line; do echo "  $line" >> "$out"; done < "$input"
done
"#;

/// Writes three outputs, one of which refers to another.
const WRITE_THREE: &str = r#"echo "building three outputs"
echo "the library" > "$lib"
echo "how to use $lib" > "$doc"
echo "uses $lib, reads $inputs" > "$out"
"#;

/// Fails as real builds do: with a word on standard error.
const FAIL: &str = r#"echo "this build is meant to fail"
echo "error: no such luck" >&2
exit 3
"#;

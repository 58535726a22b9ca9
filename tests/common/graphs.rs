//! Small graphs whose builders leave a line with a witness when they begin and when they end.

use crate::closure::{Drv, Recipe, derive, export};
use std::path::Path;
use steading::core::store_path::StoreDir;

/// How a build must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    Succeeded,
    Failed,
    /// It is never tried, because an input fails.
    Blocked,
}

/// One derivation of a graph.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: &'static str,
    pub(crate) drv: Drv,
    pub(crate) ends: Ends,
}

/// Derivations that are submitted together.
#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) name: &'static str,
    /// Inputs first.
    pub(crate) members: Vec<Member>,
}

impl Graph {
    /// Returns what goes to the standard input of `submit --closure`.
    pub(crate) fn export(&self) -> Vec<u8> {
        let drvs: Vec<&Drv> = self.members.iter().map(|member| &member.drv).collect();
        export(&drvs)
    }

    /// Returns the last derivation, which needs all others.
    pub(crate) fn root(&self) -> &Member {
        self.members.last().unwrap()
    }
}

/// Where the lines of witness go, seen from a store's directory of files: each agent has its own.
pub(crate) fn witness(files: &Path) -> std::path::PathBuf {
    files.join(".witness")
}

/// The file for which builds that wait for it look in their store's directory of files.
pub(crate) fn gate(files: &Path) -> std::path::PathBuf {
    files.join(".gate")
}

/// Makes a derivation that waits for its agent's gate and then does what `body` says; the output
/// is `$out`.
pub(crate) fn gated(store_dir: &StoreDir, name: &'static str, body: &str) -> Member {
    let script = format!("{GATE}{body}witness end\n");
    Maker { store_dir }.make(name, &["out"], &[], &script, Ends::Succeeded)
}

/// Returns all graphs. Each is short, so that a farm has done them all in a second or two.
pub(crate) fn all(store_dir: &StoreDir) -> Vec<Graph> {
    let maker = Maker { store_dir };
    let chain = {
        let first = maker.reads("chain-1", &[]);
        let second = maker.reads("chain-2", &[&first]);
        let third = maker.reads("chain-3", &[&second]);
        vec![first, second, third]
    };
    let diamond = {
        let base = maker.reads("diamond-base", &[]);
        let (left, right) =
            (maker.reads("diamond-left", &[&base]), maker.reads("diamond-right", &[&base]));
        let top = maker.reads("diamond-top", &[&left, &right]);
        vec![base, left, right, top]
    };
    let wide = {
        let mut leaves: Vec<Member> =
            ["wide-1", "wide-2", "wide-3"].iter().map(|name| maker.reads(name, &[])).collect();
        let all: Vec<&Member> = leaves.iter().collect();
        let top = maker.reads("wide-top", &all);
        leaves.push(top);
        leaves
    };
    let several = {
        let three = maker.make("several", &["doc", "lib", "out"], &[], THREE, Ends::Succeeded);
        let uses = maker.make("uses-lib", &["out"], &[(&three, "lib")], READ, Ends::Succeeded);
        vec![three, uses]
    };
    let failing = {
        let leaf = maker.make("failing", &["out"], &[], FAIL, Ends::Failed);
        let above = maker.make("above-failing", &["out"], &[(&leaf, "out")], READ, Ends::Blocked);
        let top = maker.make("blocked-top", &["out"], &[(&above, "out")], READ, Ends::Blocked);
        vec![leaf, above, top]
    };
    let graph = |name, members| Graph { name, members };
    vec![
        graph("chain", chain),
        graph("diamond", diamond),
        graph("wide", wide),
        graph("several", several),
        graph("failing", failing),
    ]
}

/// Makes derivations of one store.
struct Maker<'a> {
    store_dir: &'a StoreDir,
}

impl Maker<'_> {
    /// Makes a derivation that copies what it reads.
    fn reads(&self, name: &'static str, inputs: &[&Member]) -> Member {
        let inputs: Vec<(&Member, &str)> = inputs.iter().map(|&input| (input, "out")).collect();
        self.make(name, &["out"], &inputs, READ, Ends::Succeeded)
    }

    fn make(
        &self,
        name: &'static str,
        outputs: &[&str],
        inputs: &[(&Member, &str)],
        body: &str,
        ends: Ends,
    ) -> Member {
        let inputs: Vec<(&Drv, &str)> =
            inputs.iter().map(|(input, output)| (&input.drv, *output)).collect();
        let paths: Vec<String> =
            inputs.iter().map(|(drv, output)| drv.output(output).to_string()).collect();
        let script = format!("name={name} inputs='{}'\n{BEGIN}{body}", paths.join(" "));
        let (store_dir, script) = (self.store_dir, script.as_str());
        let recipe = Recipe { store_dir, name, script, outputs, inputs: &inputs, sources: &[] };
        Member { name, drv: derive(&recipe), ends }
    }
}

/// The time is the machine's, which no fault changes. A pause makes builds long enough to be hit.
const BEGIN: &str = r#"set -eu
place=$NIX_STORE
# A build of the direct builder sees no store but its own; its directory tells whose it is.
case $NIX_BUILD_TOP in */direct/builds/*) place=${NIX_BUILD_TOP%%/direct/builds/*}/files ;; esac
witness() { read -r now _ < /proc/uptime; echo "$1 $name $now" >> "$place/.witness"; }
witness begin
echo "building $name"
/bin/sleep 0.1
"#;

/// Waits, as long as it takes.
const GATE: &str = r#"while [ ! -e "$place/.gate" ]; do /bin/sleep 0.05; done
"#;

/// Copies every line of every input, so that references are real.
const READ: &str = r#"echo "$name" > "$out"
for input in $inputs; do
  echo "from $input" >> "$out"
  while read -r line; do echo "  $line" >> "$out"; done < "$input"
done
witness end
"#;

/// Writes three outputs, one of which refers to another.
const THREE: &str = r#"echo "the library" > "$lib"
echo "how to use $lib" > "$doc"
echo "uses $lib" > "$out"
witness end
"#;

/// Fails as real builds do: with a word on standard error.
const FAIL: &str = r#"echo "error: no such luck" >&2
witness end
exit 3
"#;

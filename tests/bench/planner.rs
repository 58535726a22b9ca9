//! Measures the planner and its queue; `tests/bench/run planner` is how to start it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that cannot be made has to stop, and its result is printed"
)]

#[path = "../common/archive.rs"]
mod archive;
#[path = "page.rs"]
mod page;
#[path = "planner/mod.rs"]
mod planner;
#[path = "../common/private_nix.rs"]
#[expect(dead_code, reason = "only what the other measurements need")]
mod private_nix;
#[path = "../common/random.rs"]
#[expect(dead_code, reason = "tests use the rest")]
mod random;
#[path = "transfers/mod.rs"]
#[expect(dead_code, reason = "only its farm, its peers and its tables are used here")]
mod transfers;
#[path = "../common/wait.rs"]
mod wait;

use planner::{Options, PARTS, Part, next};
use std::{path::Path, process::ExitCode};
use transfers::report;

const USAGE: &str = "\
usage: tests/bench/run planner [PART…] [--nodes N] [--plan N] [--open N] [--history N]
                               [--builds N] [--agents N] [--distribution N]
                               [--rounds N] [--quick] [--write]

Without arguments all parts run in full and tests/bench/RESULTS.md is written.
Parts: submit, plan, memory, recovery, allocate, next, distribution, growth.
--write writes the page also when something was asked for.
--nodes: derivations that are submitted, and that are held in memory.
--plan: derivations that are planned in memory.
--open: the most open builds that anything is measured with.
--history: how many finished builds are in a database that has many.
--distribution: how many derivations of a real distribution at most.
--builds: how many builds are allocated and completed.
";

fn main() -> ExitCode {
    if let Some(file) = std::env::args().skip_while(|word| word != next::ECHO).nth(1) {
        next::echo(Path::new(&file));
        return ExitCode::SUCCESS;
    }
    // Cargo adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let Some(asked) = Asked::parse(&words) else {
        print!("{USAGE}");
        return ExitCode::from(2);
    };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/RESULTS.md");
    for part in asked.parts {
        let section = planner::run(part, asked.options, Path::new(env!("CARGO_BIN_EXE_steading")));
        println!("\n## {}\n\n{}", section.part, report::table(&section));
        if asked.write {
            page::write(&page, &section);
        }
    }
    ExitCode::SUCCESS
}

/// What the command line asks for.
struct Asked {
    parts: Vec<Part>,
    options: Options,
    write: bool,
}

impl Asked {
    fn parse(words: &[String]) -> Option<Self> {
        let mut asked = Self { parts: Vec::new(), options: Options::FULL, write: words.is_empty() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|number| number.parse().ok());
            let options = &mut asked.options;
            match word.as_str() {
                "--quick" => *options = Options::QUICK,
                "--write" => asked.write = true,
                "--nodes" => options.nodes = number()?,
                "--plan" => options.plan = number()?,
                "--open" => options.open = number()?,
                "--history" => options.history = number()?,
                "--builds" => options.builds = number()?,
                "--agents" => options.agents = number()?,
                "--distribution" => options.distribution = number()?,
                "--rounds" => options.rounds = number()?,
                name => asked.parts.push(PARTS.into_iter().find(|(part, _)| *part == name)?),
            }
        }
        if asked.parts.is_empty() {
            asked.parts = PARTS.to_vec();
        }
        Some(asked)
    }
}

//! Measures transfers; `tests/bench/run` is how to start it.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a measurement that cannot be made has to stop, and its result is printed"
)]

#[path = "page.rs"]
mod page;
#[path = "../common/private_nix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_nix;
#[path = "transfers/mod.rs"]
#[expect(dead_code, reason = "the planner's measurement uses the rest")]
mod transfers;
#[path = "../common/wait.rs"]
mod wait;

use std::{path::Path, process::ExitCode};
use transfers::{Options, PARTS, report};

const USAGE: &str = "\
usage: tests/bench/run [PART…] [--size N[M|G]] [--source N[M|G]] [--count N] [--agents N]
                       [--rounds N] [--quick] [--write]

Without arguments all parts run in full and tests/bench/RESULTS.md is written.
Parts: sink, upload, small, control, agents, submit.
--write writes the page also when something was asked for.
";

/// What the bars speak of.
const FULL: Options = Options {
    bytes: 1 << 30,
    source_bytes: 256 << 20,
    count: 5_000,
    agents: 1_000,
    questions: 2_000,
    rounds: 5,
};

fn main() -> ExitCode {
    // Cargo adds a flag of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let Some(asked) = Asked::parse(&words) else {
        print!("{USAGE}");
        return ExitCode::from(2);
    };
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bench/RESULTS.md");
    for part in asked.parts {
        let section =
            transfers::run(part, asked.options, Path::new(env!("CARGO_BIN_EXE_steading")));
        println!("\n## {}\n\n{}", section.part, report::table(&section));
        if asked.write {
            page::write(&page, &section);
        }
    }
    ExitCode::SUCCESS
}

/// What the command line asks for.
struct Asked {
    parts: Vec<transfers::Part>,
    options: Options,
    write: bool,
}

impl Asked {
    fn parse(words: &[String]) -> Option<Self> {
        let mut asked = Self { parts: Vec::new(), options: FULL, write: words.is_empty() };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut number = || words.next().and_then(|number| bytes(number));
            let options = &mut asked.options;
            match word.as_str() {
                "--quick" => *options = Options::QUICK,
                "--write" => asked.write = true,
                "--size" => options.bytes = number()?,
                "--source" => options.source_bytes = number()?,
                "--count" => options.count = usize::try_from(number()?).ok()?,
                "--agents" => options.agents = usize::try_from(number()?).ok()?,
                "--rounds" => options.rounds = usize::try_from(number()?).ok()?,
                name => asked.parts.push(PARTS.into_iter().find(|(part, _)| *part == name)?),
            }
        }
        if asked.parts.is_empty() {
            asked.parts = PARTS.to_vec();
        }
        Some(asked)
    }
}

/// Reads a number with an optional unit.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['M', 'G']);
    let number: u64 = digits.parse().ok()?;
    match &text[digits.len()..] {
        "" => Some(number),
        "M" => number.checked_mul(1 << 20),
        "G" => number.checked_mul(1 << 30),
        _ => None,
    }
}

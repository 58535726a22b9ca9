//! What is read, what is refused, and who has precedence.

use super::*;
use clap::Parser as _;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    settings: Settings,
}

fn parse(text: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("agent.toml");
    fs_err::write(&path, text).unwrap();
    Settings::read(&path, Presence::Required).map_err(|error| error.to_string())
}

fn options(words: &[&str]) -> Settings {
    Line::try_parse_from(std::iter::once(&"agent").chain(words)).unwrap().settings
}

const WHOLE: &str = r#"
coordinator = "farm:2222"
host-key = "/etc/farm.pub"
identity = "/var/key"
builder = "nix"
store-dir = "/nix/store"
physical-store-dir = "/somewhere"
systems = ["x86_64-linux", "i686-linux"]
emulated-systems = ["aarch64-linux"]
features = ["kvm"]
tags = ["site=lab", "speed=fast"]
max-parallel-builds = 8
max-parallel-uploads = 2
cores = 4
max-1min-load-average = 7.5
max-pressure = ["io=60", "memory=2.5"]
min-memory = "4G"
min-free = 20000000000
collect-garbage = "never"
gentle-start = 30
substituters = ["https://one.example", "https://two.example"]
substituters-for-derivations = []
"#;

#[test]
fn file_and_options_have_the_same_settings() {
    let words = "--coordinator farm:2222 --host-key /etc/farm.pub --identity /var/key --builder nix \
                 --store-dir /nix/store --physical-store-dir /somewhere --system x86_64-linux \
                 --system i686-linux --emulated-system aarch64-linux --feature kvm --tag site=lab \
                 --tag speed=fast --max-parallel-builds 8 --max-parallel-uploads 2 --cores 4 \
                 --max-1min-load-average 7.5 --max-pressure io=60% --max-pressure memory=2.5 \
                 --min-memory 4G --min-free 20000000000 --collect-garbage never --gentle-start 30 \
                 --substituters https://one.example https://two.example \
                 --substituters-for-derivations";
    let words: Vec<&str> = words.split_whitespace().collect();
    assert_eq!(parse(WHOLE), Ok(options(&words)));
}

#[test]
fn the_table_at_the_head_names_every_key() {
    let keys: Vec<&str> = WHOLE.lines().filter_map(|line| line.split(" = ").next()).collect();
    for key in keys.into_iter().filter(|key| !key.is_empty()) {
        let row = format!("//! | `{key}` |");
        assert!(include_str!("../settings.rs").contains(&row), "{key}");
    }
}

#[test]
fn the_defaults_keep_nothing_out_and_start_gently() {
    let upkeep = parse("").unwrap().upkeep();
    let limits = Limits { gentle_start: Duration::from_secs(10), ..Limits::default() };
    assert_eq!(upkeep, Upkeep { limits, collection: Collection::Auto });
    assert_eq!(parse("").unwrap().substituters(), Substituters::default());
}

#[test]
fn an_option_has_precedence_over_the_file() {
    let file = parse(WHOLE).unwrap();
    let settings = options(&["--min-free", "1T", "--system", "riscv64-linux"]).or(file.clone());
    assert_eq!(settings.min_free, Some(Bytes(1 << 40)));
    assert_eq!(settings.systems, ["riscv64-linux"]);
    assert_eq!(settings.max_pressure, file.max_pressure);
    assert_eq!(Settings::default().or(file.clone()), file);
}

#[test]
fn derivations_come_from_where_everything_comes_from_unless_said_otherwise() {
    let one = || vec!["https://one.example".to_owned()];
    let found = options(&["--substituters", "https://one.example"]).substituters();
    assert_eq!(found, Substituters { derivations: Some(one()), others: Some(one()) });
    let found = options(&["--substituters-for-derivations", "https://one.example"]).substituters();
    assert_eq!(found, Substituters { derivations: Some(one()), others: None });
}

#[test]
fn an_unknown_key_is_named_with_the_known_ones() {
    let error = parse("min-fre = 3\n").unwrap_err();
    assert!(error.contains("min-fre") && error.contains("`min-free`"), "{error}");
}

#[test]
fn wrong_values_are_refused_with_what_is_expected() {
    for (text, expected) in [
        ("min-free = '3X'", "K, M, G or T"),
        ("min-free = '99999999999T'", "do not exist"),
        ("min-free = -1", "such as '20G'"),
        ("tags = ['site']", "a name, ‘=’ and a value"),
        ("tags = ['a b=c']", "without blanks"),
        ("max-pressure = ['disk=3']", "cpu, memory or io"),
        ("max-pressure = ['io=101']", "percentage"),
        ("max-parallel-builds = 0", "1 to 1024"),
        ("max-parallel-uploads = 4", "1 to 3"),
        ("max-1min-load-average = 0.0", "above 0"),
        ("max-1min-load-average = nan", "above 0"),
        ("builder = 'docker'", "builder"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_file_that_was_asked_for_must_be_there() {
    let missing = Path::new("/nonexistent/agent.toml");
    assert_eq!(Settings::read(missing, Presence::Optional).unwrap(), Settings::default());
    assert!(matches!(Settings::read(missing, Presence::Required), Err(SettingsError::Read(_))));
}

//! Tables of malformed derivations, and what follows from well-formed ones.

mod nix;
mod random;

use super::*;
use crate::core::aterm::SyntaxError;

/// The output of [`PLAIN`].
const OUT: &str = "/gnu/store/10000000000000000000000000000000-x";
/// A derivation with one of everything; its paths do not follow from it.
const PLAIN: &str = r#"Derive([("out","/gnu/store/10000000000000000000000000000000-x","","")],[("/gnu/store/20000000000000000000000000000000-a.drv",["lib","out"]),("/gnu/store/30000000000000000000000000000000-b.drv",["out"])],["/gnu/store/40000000000000000000000000000000-c","/gnu/store/50000000000000000000000000000000-d"],"x86_64-linux","/bin/sh",["-c","a\nb"],[("name","x"),("out","/gnu/store/10000000000000000000000000000000-x")])"#;

/// Returns why [`PLAIN`] is refused after `from` became `to`.
fn refusal(from: &str, to: &str) -> DerivationError {
    assert!(PLAIN.contains(from), "{from}");
    Derivation::parse(PLAIN.replacen(from, to, 1).as_bytes()).unwrap_err()
}

fn path(base: &str) -> StorePath {
    format!("/gnu/store/{base}").parse().unwrap()
}

#[test]
fn a_derivation_says_what_its_file_says() {
    let derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
    assert_eq!(derivation.to_bytes(), PLAIN.as_bytes());
    assert_eq!(derivation.store_dir(), &StoreDir::guix());
    assert_eq!(derivation.outputs.len(), 1);
    assert_eq!(derivation.outputs[0].path.to_string(), OUT);
    let (input, names) = &derivation.input_derivations[0];
    assert_eq!(input, &path("20000000000000000000000000000000-a.drv"));
    assert_eq!(names, &["lib", "out"]);
    assert_eq!(derivation.input_sources[1], path("50000000000000000000000000000000-d"));
    assert_eq!(derivation.system, "x86_64-linux");
    assert!(matches!(derivation.builder, Cow::Borrowed(b"/bin/sh")));
    assert_eq!(derivation.arguments, [&b"-c"[..], b"a\nb"]);
    assert_eq!(derivation.env(b"out"), Some(OUT.as_bytes()));
    assert_eq!(derivation.env(b"in"), None);
    assert_eq!(derivation.fixed_output(), None);
    assert_eq!(derivation.clone().into_owned(), derivation);
}

#[test]
fn every_beginning_of_a_file_is_refused() {
    for end in 0..PLAIN.len() {
        let result = Derivation::parse(&PLAIN.as_bytes()[..end]);
        assert!(
            matches!(
                result,
                Err(DerivationError::Syntax(SyntaxError { at, .. })) if at <= end
            ),
            "{end}: {result:?}"
        );
    }
}

#[test]
fn texts_that_no_daemon_writes_are_refused() {
    for (name, from, to) in [
        ("another constructor", "Derive(", "Derived("),
        ("lower case", "Derive(", "derive("),
        ("a space between items", "\"lib\",", "\"lib\", "),
        ("a space at the beginning", "Derive", " Derive"),
        ("a line feed at the end", "-x\")])", "-x\")])\n"),
        ("another derivation behind it", "-x\")])", "-x\")])Derive("),
        ("no comma between lists", "],[(\"/gnu", "][(\"/gnu"),
        ("a comma at the end of a list", "[\"lib\",\"out\"]", "[\"lib\",\"out\",]"),
        ("an output with three fields", ",\"\",\"\")]", ",\"\")]"),
        ("an output with five fields", ",\"\",\"\")]", ",\"\",\"\",\"\")]"),
        ("an input without outputs", ",[\"lib\",\"out\"]", ""),
        ("a list for the system", "\"x86_64-linux\"", "[\"x86_64-linux\"]"),
        ("a raw line feed", "a\\nb", "a\nb"),
        ("an unknown escape", "a\\nb", "a\\xb"),
        ("a variable without a value", "(\"name\",\"x\")", "(\"name\")"),
        ("dynamic outputs of an input", "[\"lib\",\"out\"]", "([\"lib\",\"out\"],[])"),
    ] {
        let error = refusal(from, to);
        assert!(matches!(error, DerivationError::Syntax(_)), "{name}: {error}");
    }
}

#[test]
fn unsorted_and_repeated_items_are_refused() {
    let source = |digit| format!("\"/gnu/store/{digit}0000000000000000000000000000000-");
    for (name, from, to, what) in [
        (
            "outputs",
            "(\"out\"",
            "(\"z\",\"/gnu/store/60000000000000000000000000000000-x-z\",\"\",\"\"),(\"out\"".into(),
            "outputs",
        ),
        (
            "input derivations",
            "30000000000000000000000000000000-b",
            "10000000000000000000000000000000-b".into(),
            "input derivations",
        ),
        (
            "a repeated input",
            "30000000000000000000000000000000-b",
            "20000000000000000000000000000000-a".into(),
            "input derivations",
        ),
        ("sources", &source(4), source(6), "input sources"),
        (
            "a repeated source",
            "50000000000000000000000000000000-d",
            "40000000000000000000000000000000-c".into(),
            "input sources",
        ),
        ("outputs of an input", "\"lib\",\"out\"", "\"out\",\"lib\"".into(), "outputs of an input"),
        ("a repeated output of an input", "\"lib\"", "\"out\"".into(), "outputs of an input"),
        ("variables", "(\"name\"", "(\"path\"".into(), "environment variables"),
        ("a repeated variable", "(\"name\"", "(\"out\"".into(), "environment variables"),
    ] {
        let error = refusal(from, &to);
        assert!(
            matches!(error, DerivationError::Order { what: w, .. } if w == what),
            "{name}: {error}"
        );
    }
}

#[test]
fn impossible_paths_and_names_are_refused() {
    type Check = fn(&DerivationError) -> bool;
    let invalid_path: Check = |e| matches!(e, DerivationError::Path(_));
    let other_store: Check = |e| matches!(e, DerivationError::OtherStore { .. });
    let not_a_derivation: Check = |e| matches!(e, DerivationError::NotADerivation { .. });
    let output_name: Check = |e| matches!(e, DerivationError::OutputName(_));
    let system: Check = |e| matches!(e, DerivationError::System(_));
    let long_name = format!("\"{}\"", "n".repeat(212));
    for (name, from, to, expected) in [
        ("a relative output", "\"/gnu", "\"gnu", invalid_path),
        ("an output that is not in a store", OUT, "/tmp", invalid_path),
        ("an output below a path", "0-x\"", "0-x/y\"", invalid_path),
        ("a letter that is no digit", "0-c\"", "e-c\"", invalid_path),
        ("a source that is the store", "/40000000000000000000000000000000-c", "", invalid_path),
        ("an escape in a path", "-c\"", "-\\\"c\"", invalid_path),
        ("a byte that is not ASCII", "-c\"", "-é\"", invalid_path),
        ("a source in another store", "/gnu/store/4", "/nix/store/4", other_store),
        ("an input in another store", "/gnu/store/3", "/nix/store/3", other_store),
        ("an input in a longer store", "/gnu/store/3", "/gnu/store/s/3", other_store),
        ("an input that is no derivation", "-b.drv", "-b.dry", not_a_derivation),
        ("an input called .drv", "-b.drv", "-.drv", not_a_derivation),
        ("an output without a name", "(\"out\"", "(\"\"", output_name),
        ("an output with a slash", "(\"out\"", "(\"a/b\"", output_name),
        ("an output of an input with a space", "\"lib\"", "\"l b\"", output_name),
        ("a long output", "\"out\"", &long_name, output_name),
        ("no system", "x86_64-linux", "", system),
        ("a system with a space", "x86_64-linux", "x86_64 linux", system),
        ("a system with a control character", "x86_64-linux", "x86\\n", system),
    ] {
        let error = refusal(from, to);
        assert!(expected(&error), "{name}: {error}");
    }
}

#[test]
fn kinds_of_outputs_that_are_not_supported_are_refused_by_name() {
    let output = |name: &str, path: &str, algorithm: &str, hash: &str| {
        let text = PLAIN.replacen(
            &format!("(\"out\",\"{OUT}\",\"\",\"\")"),
            &format!("(\"{name}\",\"{path}\",\"{algorithm}\",\"{hash}\")"),
            1,
        );
        Derivation::parse(text.as_bytes()).map(Derivation::into_owned).unwrap_err()
    };
    let hash = "0".repeat(64);
    assert_eq!(output("out", "", "r:sha256", ""), DerivationError::Floating("out".into()));
    assert_eq!(output("out", OUT, "sha256", ""), DerivationError::Floating("out".into()));
    assert_eq!(output("out", "", "r:sha256", "impure"), DerivationError::Impure("out".into()));
    assert_eq!(output("out", "", "", ""), DerivationError::Deferred("out".into()));
    assert!(matches!(output("out", "", "sha256", &hash), DerivationError::Path(_)));
    assert_eq!(
        output("lib", OUT, "sha256", &hash),
        DerivationError::FixedOutputShape("lib".into())
    );
    for algorithm in ["", "r:", "sha-256", "text:sha256", "git:sha1", "r:r:sha256", "SHA256"] {
        assert_eq!(
            output("out", OUT, algorithm, &hash),
            DerivationError::HashAlgorithm(algorithm.into())
        );
    }
    for wrong in ["0", &"0".repeat(65), &"F".repeat(64), &"g".repeat(64), "é"] {
        assert!(
            matches!(output("out", OUT, "sha256", wrong), DerivationError::OutputHash { .. }),
            "{wrong}"
        );
    }
    let dynamic = PLAIN.replace("Derive(", "DrvWithVersion(\"xp-dyn-drv\",");
    assert_eq!(Derivation::parse(dynamic.as_bytes()), Err(DerivationError::Dynamic));
}

#[test]
fn a_hash_beside_other_outputs_is_refused() {
    let hash = "0".repeat(64);
    let two = format!(
        "(\"out\",\"{OUT}\",\"sha256\",\"{hash}\"),\
         (\"z\",\"/gnu/store/60000000000000000000000000000000-x-z\",\"\",\"\")"
    );
    let error = refusal(&format!("(\"out\",\"{OUT}\",\"\",\"\")"), &two);
    assert_eq!(error, DerivationError::FixedOutputShape("out".into()));
}

#[test]
fn a_derivation_without_outputs_is_refused() {
    let error = refusal(&format!("[(\"out\",\"{OUT}\",\"\",\"\")]"), "[]");
    assert_eq!(error, DerivationError::NoOutputs);
}

#[test]
fn limits_hold_exactly() {
    let list = |count: usize| vec!["\"a\""; count].join(",");
    let arguments = |count| PLAIN.replacen(r#""-c","a\nb""#, &list(count), 1);
    assert!(Derivation::parse(arguments(ARGUMENTS_MAX).as_bytes()).is_ok());
    assert_eq!(
        Derivation::parse(arguments(ARGUMENTS_MAX + 1).as_bytes()),
        Err(DerivationError::TooMany { what: "arguments", max: ARGUMENTS_MAX })
    );
    let file = |bytes: usize| {
        let padding = "a".repeat(bytes - PLAIN.len() + "-c".len());
        PLAIN.replacen("\"-c\"", &format!("\"{padding}\""), 1)
    };
    assert!(Derivation::parse(file(DRV_BYTES_MAX).as_bytes()).is_ok());
    assert_eq!(
        Derivation::parse(file(DRV_BYTES_MAX + 1).as_bytes()),
        Err(DerivationError::TooLarge { bytes: DRV_BYTES_MAX + 1 })
    );
}

/// Returns a derivation with no inputs and the right path for its one output, called `x`.
fn verifiable() -> Derivation<'static> {
    let mut derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
    derivation.input_derivations.clear();
    let Err(DerivationError::OutputPath { computed, .. }) =
        derivation.verify_outputs("x", &mut |_| None)
    else {
        panic!("the output path of the example was right")
    };
    derivation.env[1].1 = computed.to_string().into_bytes().into();
    derivation.outputs[0].path = *computed;
    derivation
}

#[test]
fn output_paths_are_recomputed() {
    let derivation = verifiable();
    assert_eq!(derivation.verify_outputs("x", &mut |_| None), Ok(()));
    let result = derivation.verify_outputs("y", &mut |_| None);
    assert!(matches!(result, Err(DerivationError::OutputPath { .. })));
    let mut changed = derivation.clone();
    changed.system = "i686-linux".to_owned();
    let result = changed.verify_outputs("x", &mut |_| None);
    assert!(matches!(result, Err(DerivationError::OutputPath { .. })));
    let result = derivation.verify_outputs(&"x".repeat(212), &mut |_| None);
    assert!(matches!(result, Err(DerivationError::Path(_))));
}

#[test]
fn a_variable_named_after_an_output_must_be_its_path() {
    let mut derivation = verifiable();
    derivation.env[1].1 = Cow::Borrowed(b"/gnu/store");
    let result = derivation.verify_outputs("x", &mut |_| None);
    assert!(matches!(result, Err(DerivationError::OutputVariable { .. })), "{result:?}");
}

#[test]
fn a_missing_input_is_named() {
    let derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
    let known = path("20000000000000000000000000000000-a.drv");
    let mut input = |input: &StorePath| (*input == known).then(|| Sha256::of(b""));
    let missing =
        DerivationError::MissingInput { path: path("30000000000000000000000000000000-b.drv") };
    assert_eq!(derivation.hash_modulo(&mut input), Err(missing.clone()));
    assert_eq!(derivation.verify_outputs("x", &mut input), Err(missing));
}

#[test]
fn fixed_outputs_need_no_inputs_and_follow_from_their_hash() {
    // A derivation of Guix: the checkout of qbe 1.2, without its other variables.
    let hash = "520b499d917f62d0f9e0e072f47cc6440107c79b42f56a3661c522746c2bbfeb";
    let out = "/gnu/store/l82f5ad6yhxszl9d8dmv2sn2vm0p0b7p-qbe-1.2-checkout";
    let text = PLAIN.replace(OUT, out).replace("\"\",\"\"", &format!("\"r:sha256\",\"{hash}\""));
    let derivation = Derivation::parse(text.as_bytes()).unwrap();
    let fixed = derivation.fixed_output().unwrap();
    assert!(fixed.recursive);
    assert_eq!((fixed.algorithm.as_str(), fixed.hash_hex.as_str()), ("sha256", hash));
    assert_eq!(derivation.verify_outputs("qbe-1.2-checkout", &mut |_| None), Ok(()));
    assert_eq!(
        derivation.hash_modulo(&mut |_| None),
        Ok(Sha256::of(format!("fixed:out:r:sha256:{hash}:{out}").as_bytes()))
    );
    let result = derivation.verify_outputs("qbe-1.3-checkout", &mut |_| None);
    assert!(matches!(result, Err(DerivationError::OutputPath { .. })));
    let flat = text.replace("r:sha256", "sha256");
    let result = Derivation::parse(flat.as_bytes())
        .unwrap()
        .verify_outputs("qbe-1.2-checkout", &mut |_| None);
    assert!(matches!(result, Err(DerivationError::OutputPath { .. })));
}

#[test]
fn every_algorithm_of_either_daemon_is_read() {
    for (algorithm, digits) in [
        ("md5", 32),
        ("sha1", 40),
        ("sha256", 64),
        ("sha512", 128),
        ("sha3-256", 64),
        ("sha3-512", 128),
        ("blake2s-256", 64),
        ("blake3", 64),
    ] {
        for prefix in ["", "r:"] {
            let hash = format!("\"{prefix}{algorithm}\",\"{}\"", "a".repeat(digits));
            let text = PLAIN.replace("\"\",\"\"", &hash);
            let fixed = Derivation::parse(text.as_bytes()).unwrap().fixed_output().unwrap();
            assert_eq!(
                (fixed.recursive, fixed.algorithm.as_str()),
                (!prefix.is_empty(), algorithm)
            );
        }
    }
}

#[test]
fn a_file_belongs_under_one_path_only() {
    let derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
    let references = derivation.closure_references();
    let own = derivation_path(&StoreDir::guix(), "x.drv", PLAIN.as_bytes(), &references).unwrap();
    let verify = |path: &StorePath, text: &str| verify_path(path, text.as_bytes(), &derivation);
    assert_eq!(verify(&own, PLAIN), Ok(()));
    let changed = verify(&own, &PLAIN.replace("/bin/sh", "/bin/zh"));
    assert!(matches!(changed, Err(DerivationError::DerivationPath { .. })));
    let renamed = own.dir().path(own.hash(), "y.drv").unwrap();
    assert!(matches!(verify(&renamed, PLAIN), Err(DerivationError::DerivationPath { .. })));
    let elsewhere = StoreDir::nix().path(own.hash(), "x.drv").unwrap();
    assert!(matches!(verify(&elsewhere, PLAIN), Err(DerivationError::OtherStore { .. })));
    let source = own.dir().path(own.hash(), "x").unwrap();
    assert!(matches!(verify(&source, PLAIN), Err(DerivationError::NotADerivation { .. })));
    let input = path("30000000000000000000000000000000-b.drv");
    assert_eq!(verify(&input, PLAIN), Err(DerivationError::SelfEdge { path: input }));
}

#[test]
fn references_are_sorted_as_texts_and_unique() {
    let mut derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
    // By the bytes of its hash this would come last: digits run from the last bits to the first.
    derivation.input_sources.push(path("0000000000000000000000000000000z-z"));
    derivation.input_sources.push(path("30000000000000000000000000000000-b.drv"));
    let names: Vec<_> =
        derivation.closure_references().iter().map(|r| r.name().to_owned()).collect();
    assert_eq!(names, ["z", "a.drv", "b.drv", "c", "d"]);
}

#[test]
fn features_come_from_the_environment_or_from_structured_attributes() {
    let features = |variables: &[(&'static str, &'static [u8])]| {
        let mut derivation = Derivation::parse(PLAIN.as_bytes()).unwrap();
        derivation.env = variables
            .iter()
            .map(|(name, value)| (Cow::Borrowed(name.as_bytes()), Cow::Borrowed(*value)))
            .collect();
        derivation.required_system_features()
    };
    let required = "requiredSystemFeatures";
    let json = br#"{"a":[1],"requiredSystemFeatures":["kvm","big-parallel","kvm"]}"#;
    assert!(features(&[]).is_empty());
    assert!(features(&[(required, b" \n")]).is_empty());
    assert_eq!(features(&[(required, b" kvm  big-parallel\nkvm")]), ["big-parallel", "kvm"]);
    assert_eq!(features(&[(required, b"a\xff")]), ["a\\xff"]);
    assert_eq!(features(&[("__json", json)]), ["big-parallel", "kvm"]);
    assert_eq!(features(&[("__json", json), (required, b"nixos-test")]), ["big-parallel", "kvm"]);
    assert!(features(&[("__json", b"{}"), (required, b"kvm")]).is_empty());
    assert_eq!(features(&[("__json", br#"{"requiredSystemFeatures":"kvm a"}"#)]), ["a", "kvm"]);
    assert!(features(&[("__json", b"{\"requiredSystemFeatures\":[\"kvm\"")]).is_empty());
    assert!(features(&[("__json", "[".repeat(100_000).leak().as_bytes())]).is_empty());
}

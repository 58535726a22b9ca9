//! The Guix channel in `contrib/guix`: a real Guix loads its package and lowers its services.
//! Skipped, and said so, where there is no Debian sid to be had.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/wait.rs"]
mod wait;

use private_guix::PrivateGuix;
use std::path::Path;

/// Lowers what needs no network: the package to its inputs and sources, the services to the forms
/// that the shepherd and /etc get. Prints one line for each thing that a test looks at.
const LOWER: &str = r#"
(use-modules (guix) (guix gexp) (guix store) (guix derivations) (guix packages)
             (gnu services) (gnu services base) (gnu services shepherd)
             (ice-9 match) (srfi srfi-1)
             (steading packages crates) (steading packages steading) (steading services steading))
(define store (open-connection))
(define (say . words) (display (string-join (map object->string words) " ")) (newline))
(define (lowered gexp)
  (object->string (lowered-gexp-sexp (run-with-store store (lower-gexp gexp)))))
(define (shepherds type value)
  (append-map (lambda (extension)
                (if (eq? (service-extension-target extension) shepherd-root-service-type)
                    ((service-extension-compute extension) value)
                    '()))
              (service-type-extensions type)))
(define (extension type target value)
  (any (lambda (extension)
         (and (eq? (service-extension-target extension) target)
              ((service-extension-compute extension) value)))
       (service-type-extensions type)))

;; Not a program of this machine: nothing can be built here.
(define program (plain-file "program" ""))

(say 'package (package-name steading) (package-version rust-of-steading)
     (- (length (package-inputs steading)) 1) (length %crates))
(let ((crate (find (lambda (input) (string-prefix? "rust-aes-0." (origin-actual-file-name input)))
                   (filter origin? (map second (package-inputs steading))))))
  (say 'crate (derivation-file-name
               (run-with-store store (lower-object crate)))))

(for-each
 (match-lambda
   ((name type value)
    (for-each (lambda (service)
                (say name (shepherd-service-provision service)
                     (lowered (shepherd-service-start service))
                     (lowered (shepherd-service-stop service))))
              (shepherds type value))
    (say name 'activation
         (and=> (extension type activation-service-type value) lowered))))
 `((coordinator ,steading-coordinator-service-type
                ,(steading-coordinator-configuration
                  (package program) (settings '((lease . 600) (strategy . basic)))))
   (agent ,steading-agent-service-type
          ,(steading-agent-configuration
            (package program) (coordinator "farm:2222") (host-key "ssh-ed25519 AAAA")
            (settings '((max-parallel-builds . 4) (systems . ("x86_64-linux"))))))))

(define guix-side
  (steading-guix-configuration
   (package program) (openssh program) (guix program)
   (coordinator "-p 2222 farm") (signing-keys (list (plain-file "key" "(public-key)")))
   (settings '((unreachable . "wait") (substitute . #f)))))
(let ((etc (extension steading-guix-service-type etc-service-type guix-side)))
  (say 'etc (map first etc))
  (say 'keys (length (guix-extension-authorized-keys
                      (extension steading-guix-service-type guix-service-type guix-side))))
  (say 'toml (toml-text '((a . "x\"y") (b . 1) (c . #t) (d . ("p" "q")) (e . sym)))))
(say 'environment
     (guix-configuration-environment
      (guix-configuration-with-steading (guix-configuration (environment '("A=1"))))))
;; The configured value of the daemon's own service is lowered by Guix without a complaint.
(say 'daemon (map shepherd-service-provision
                  (shepherds guix-service-type
                             (guix-configuration-with-steading (guix-configuration)))))
"#;

#[test]
fn the_list_of_crates_is_that_of_the_lock_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = fs_err::read_to_string(root.join("Cargo.lock")).unwrap();
    let (mut name, mut version) = ("", "");
    let mut expected = Vec::new();
    for line in lock.lines() {
        match line.split_once(" = ") {
            Some(("name", value)) => name = value,
            Some(("version", value)) => version = value,
            Some(("checksum", value)) => expected.push(format!("({name} {version} {value})")),
            _ => {}
        }
    }
    let list = root.join("contrib/guix/steading/packages/crates.scm");
    let list = fs_err::read_to_string(list).unwrap();
    let listed: Vec<&str> =
        list.lines().map(str::trim).filter(|line| line.starts_with("(\"")).collect();
    assert!(expected.len() > 100, "{}", expected.len());
    assert!(listed == expected, "run contrib/guix/update-crates");
}

#[test]
fn guix_loads_the_package_and_lowers_the_services() {
    let guix = match PrivateGuix::start() {
        Ok(guix) => guix,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let channel = guix.outside("/var/guix/tmp/checkout/contrib/guix");
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/guix"), &channel);
    fs_err::write(guix.outside("/var/guix/tmp/checkout/Cargo.toml"), "").unwrap();
    fs_err::write(guix.outside("/var/guix/tmp/lower.scm"), LOWER).unwrap();
    let output = guix
        .command("guix")
        .args([
            "repl",
            "-L",
            "/var/guix/tmp/checkout/contrib/guix",
            "--",
            "/var/guix/tmp/lower.scm",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}\n{}", output.stderr.escape_ascii());
    let line = |begin: &str| {
        let found = said.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no {begin} in {said}")).to_owned()
    };

    // All of it becomes a derivation, which names every source.
    let output = guix
        .command("guix")
        .args([
            "build",
            "-L",
            "/var/guix/tmp/checkout/contrib/guix",
            "--no-grafts",
            "-d",
            "steading",
        ])
        .output()
        .unwrap();
    let drv = String::from_utf8(output.stdout).unwrap();
    assert!(drv.trim_end().ends_with("-steading-0.1.0.drv"), "{}", output.stderr.escape_ascii());

    let words: Vec<String> = line("package").split(' ').map(str::to_owned).collect();
    let [_, name, rust, origins, crates] = &*words else { panic!("{words:?}") };
    assert_eq!(name, "\"steading\"");
    // The newest that this Guix has.
    assert!(rust.starts_with("\"1."), "{rust}");
    assert_eq!(origins, crates, "one source for each crate");
    assert!(line("crate").contains(".tar.gz.drv"), "{}", line("crate"));

    let coordinator = line("coordinator (steading-coordinator)");
    for words in ["\\\"coordinator\\\" \\\"--state\\\" \\\"/var/lib/steading\\\"", "steading.toml"]
    {
        assert!(coordinator.contains(words), "{coordinator}");
    }
    let agent = line("agent (steading-agent)");
    for words in ["\\\"--coordinator\\\" \\\"farm:2222\\\"", "ssh-ed25519 AAAA", "agent.toml"] {
        assert!(agent.contains(words), "{agent}");
    }
    assert!(line("coordinator activation").contains("mkdir-p"), "{said}");
    assert_eq!(line("etc"), r#"etc ("steading/guix.toml" "steading/steading-guix")"#);
    assert_eq!(line("keys"), "keys 1");
    assert_eq!(
        line("toml"),
        r#"toml "a = \"x\\\"y\"\nb = 1\nc = true\nd = [\"p\", \"q\"]\ne = \"sym\"\n""#
    );
    let environment = line("environment");
    assert_eq!(environment, r#"environment ("GUIX=/etc/steading/steading-guix" "A=1")"#);
    assert_eq!(line("daemon"), "daemon ((guix-ownership) (guix-daemon))");
}

/// Copies a folder.
fn copy(from: &Path, to: &Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy(&from, &to);
        } else {
            fs_err::copy(from, to).unwrap();
        }
    }
}

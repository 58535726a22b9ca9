//! Our Guix dialect against a real Guix: signatures against libgcrypt's, the published tree against
//! `guix substitute`. Skipped, and said so, where there is no Debian sid to be had.
#![expect(clippy::unwrap_used, reason = "all of it is a test; a failure names its place")]

#[path = "common/farm.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod farm;
#[path = "common/private_guix.rs"]
#[expect(dead_code, reason = "another test uses the rest")]
mod private_guix;
#[path = "common/wait.rs"]
mod wait;

use farm::Farm;
use private_guix::PrivateGuix;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use steading::{
    config::Config,
    core::{
        hash::{Sha256, hex},
        id::AttemptId,
        path_info::PathInfo,
        store_path::StorePath,
        time::Timestamp,
    },
    depot::{Depot, Publisher, Unpublished, UploadRules},
    formats::signature::guix::{GuixPublicKey, GuixSecretKey},
    protocol::bulk::OfferedOutput,
    ssh::Role,
};
use tempfile::TempDir;

/// How many keys and texts are compared each way.
const SIGNATURES: usize = 200;

/// Starts a Guix, or ends the test with the reason why there is none.
macro_rules! guix_or_skip {
    () => {
        match PrivateGuix::start() {
            Ok(guix) => guix,
            Err(reason) => {
                println!("skipped: {reason}");
                return;
            }
        }
    };
}

/// What `guix authenticate` does, for many keys in one process. Reads lines of a secret key, a
/// digest, a signature and a digest that is not the signed one, in hexadecimal digits; says how
/// many of the signatures are those that libgcrypt makes and that it verifies. Then prints such
/// lines, without the last, of keys that libgcrypt made.
const AUTHENTICATE: &str = r##"
(use-modules (guix pki) (gcrypt pk-crypto) (gcrypt hash) (gcrypt base16) (rnrs bytevectors)
             (ice-9 rdelim) (ice-9 match))
(define (hex text) (bytevector->base16-string (string->utf8 text)))
(define (unhex digits) (utf8->string (base16-string->bytevector digits)))
(define (public-half secret)
  (string->canonical-sexp
   (string-append "(public-key (ecc (curve Ed25519) (q #"
                  (bytevector->base16-string
                   (canonical-sexp-nth-data (find-sexp-token secret 'q) 1))
                  "#)))")))
(define (data digest) (bytevector->hash-data digest #:key-type 'ecc))
(define (sign-text digest secret)
  (canonical-sexp->string (signature-sexp (data digest) secret (public-half secret))))
(define (verified? signature digest secret)
  (verify (find-sexp-token (string->canonical-sexp signature) 'sig-val)
          (data digest) (public-half secret)))
(define (count-ours port)
  (let loop ((same 0) (good 0) (bad 0))
    (let ((line (read-line port)))
      (if (eof-object? line)
          (format #t "~a ~a ~a~%" same good bad)
          (match (string-split line #\space)
            ((secret digest signature other)
             (let ((secret (string->canonical-sexp (unhex secret)))
                   (signature (unhex signature))
                   (digest (base16-string->bytevector digest))
                   (other (base16-string->bytevector other)))
               (loop (+ same (if (string=? signature (sign-text digest secret)) 1 0))
                     (+ good (if (verified? signature digest secret) 1 0))
                     (+ bad (if (verified? signature other secret) 1 0))))))))))
(define (print-theirs count)
  (let loop ((n 0))
    (when (< n count)
      (let* ((pair (generate-key (string->canonical-sexp
                                  "(genkey (ecdsa (curve Ed25519) (flags rfc6979)))")))
             (secret (find-sexp-token pair 'private-key))
             (digest (sha256 (string->utf8 (number->string n)))))
        (format #t "~a ~a ~a~%" (hex (canonical-sexp->string secret))
                (bytevector->base16-string digest) (hex (sign-text digest secret)))
        (loop (+ n 1))))))
"##;

#[test]
fn every_signature_is_the_one_that_libgcrypt_makes() {
    let guix = guix_or_skip!();
    let mut ours = String::new();
    for n in 0..SIGNATURES {
        let mut seed = [0; 64];
        getrandom(&mut seed);
        let (seed, digest) = seed.split_first_chunk::<32>().unwrap();
        let key = GuixSecretKey::generate(*seed);
        let digest = Sha256::from_bytes(digest.try_into().unwrap());
        let (secret, signature) = (hex(key.to_text().as_bytes()), key.sign(&digest));
        let other = Sha256::of(&n.to_le_bytes()).hex();
        let signature = hex(signature.as_bytes());
        writeln!(ours, "{secret} {} {signature} {other}", digest.hex()).unwrap();
    }
    let file = "/var/guix/tmp/ours";
    fs_err::write(guix.outside(file), &ours).unwrap();
    let said = guix.scheme(&format!(
        "{AUTHENTICATE}(call-with-input-file \"{file}\" count-ours)(print-theirs {SIGNATURES})"
    ));
    let mut lines = said.lines();
    let expected = format!("{SIGNATURES} {SIGNATURES} 0");
    assert_eq!(lines.next(), Some(expected.as_str()), "same, verified, verified for another text");
    let mut compared = 0;
    for line in lines {
        let [secret, digest, signature] =
            line.split(' ').map(str::to_owned).collect::<Vec<_>>().try_into().unwrap();
        let (secret, signature) = (unhex(&secret), unhex(&signature));
        let digest = Sha256::parse(&digest).unwrap();
        let key = GuixSecretKey::parse(&secret).unwrap();
        assert_eq!(*key.to_text(), secret);
        assert_eq!(key.sign(&digest), signature);
        assert!(key.public().verify(&digest, signature.as_bytes()));
        assert!(!key.public().verify(&Sha256::of(b"another"), signature.as_bytes()));
        compared += 1;
    }
    assert_eq!(compared, SIGNATURES);
}

#[test]
fn the_keys_of_a_guix_are_read_from_its_own_files() {
    let guix = guix_or_skip!();
    let made = guix.command("guix").args(["archive", "--generate-key"]).output().unwrap();
    assert!(made.status.success(), "{}", made.stderr.escape_ascii());
    let read = |name: &str| {
        fs_err::read_to_string(guix.outside(Path::new("/etc/guix").join(name))).unwrap()
    };
    let secret = GuixSecretKey::parse(&read("signing-key.sec")).unwrap();
    let public = GuixPublicKey::parse(&read("signing-key.pub")).unwrap();
    assert_eq!(*secret.public(), public);
    assert_eq!(*secret.to_text(), read("signing-key.sec"));
    assert_eq!(public.to_text(), read("signing-key.pub"));
    // One of ours is authorized by Guix's own means, and the list that it wrote is read.
    let ours = *GuixSecretKey::generate([3; 32]).public();
    fs_err::write(guix.outside("/var/guix/tmp/ours.pub"), ours.to_text()).unwrap();
    let authorized = guix
        .command("sh")
        .args(["-c", "guix archive --authorize < /var/guix/tmp/ours.pub"])
        .output()
        .unwrap();
    assert!(authorized.status.success(), "{}", authorized.stderr.escape_ascii());
    let allowed = GuixPublicKey::parse_acl(&read("acl")).unwrap();
    assert!(allowed.contains(&ours), "{allowed:?}");
}

/// Two derivations, one of which is in the closure of the other's output, and a fixed output.
const GRAPH: &str = r#"
(use-modules (gcrypt hash) (rnrs bytevectors))
(define library
  (say (make "library" "busybox mkdir -p $out/lib; busybox seq 1 20000 > $out/lib/numbers;
                        busybox ln -s numbers $out/lib/link; echo tool > $out/tool;
                        busybox chmod +x $out/tool")))
(define greeting
  (say (make "greeting" "echo greetings from $library and busybox > $out"
             #:inputs (list (list library)) #:env `(("library" . ,(derivation->output-path library))))))
(define fixed
  (say (make "tarball.txt" "echo content > $out" #:hash-algo 'sha256
             #:hash (sha256 (string->utf8 "content\n")))))
"#;

#[test]
fn a_stock_guix_substitutes_what_is_published_when_it_believes_the_key() {
    let home = guix_or_skip!();
    let reader = guix_or_skip!();
    let drvs = home.derivations(GRAPH);
    let outputs: Vec<StorePath> =
        drvs.iter().map(|drv| home.derivation(drv).outputs[0].path.clone()).collect();
    let built = home
        .command("guix")
        .args(["build", "--no-substitutes"])
        .args(drvs.iter().map(ToString::to_string))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", built.stderr.escape_ascii());
    let fixed = home.derivation(&drvs[2]).fixed_output();
    let published =
        Published::new(
            &home,
            &outputs,
            |path| {
                if *path == outputs[2] { fixed.clone() } else { None }
            },
        );
    assert!(published.paths.len() >= outputs.len());

    // Nobody is believed; then somebody else is; both times nothing appears.
    let stranger = GuixSecretKey::generate([9; 32]).public().to_text();
    for keys in [vec![], vec![stranger]] {
        reader.authorize(&keys);
        published.substitute(&reader, &outputs);
        for path in &outputs {
            assert!(!reader.has(path), "{path} came unsigned");
        }
    }

    reader.authorize(&[published.depot.guix_public_key()]);
    let said = published.substitute(&reader, &outputs);
    for path in &outputs {
        let (there, here) = (home.outside(path.to_string()), reader.outside(path.to_string()));
        assert!(reader.has(path), "{path} was not substituted: {said}");
        assert_eq!(tree(&here), tree(&there), "{path}");
    }
    let verified = reader.command("guix").args(["gc", "--verify=contents"]).output().unwrap();
    assert!(verified.status.success(), "{}", verified.stderr.escape_ascii());
    // A fixed output is also there as it is, as Guix's download programs ask for it.
    let hash = Sha256::of(b"content\n").base32();
    let file = published.tree().join("file/tarball.txt/sha256").join(hash);
    assert_eq!(fs_err::read_to_string(file).unwrap(), "content\n");
}

#[test]
fn a_stock_guix_refuses_a_tree_that_was_tampered_with() {
    let home = guix_or_skip!();
    let drvs = home.derivations(r#"(say (make "victim" "echo right $out > $out"))"#);
    let built = home.command("guix").arg("build").arg(drvs[0].to_string()).output().unwrap();
    assert!(built.status.success(), "{}", built.stderr.escape_ascii());
    let outputs = [home.derivation(&drvs[0]).outputs[0].path.clone()];
    let published = Published::new(&home, &outputs, |_| None);
    let narinfo = published.tree().join(format!("{}.narinfo", outputs[0].hash().base32()));
    let good = fs_err::read_to_string(&narinfo).unwrap();
    let field = |name: &str| good.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    let other_hash = format!("NarHash: {}", Sha256::of(b"wrong"));
    let gzip = good.lines().rfind(|line| line.ends_with(".nar.gz")).unwrap();
    let gzip = published.tree().join(gzip.strip_prefix("URL: ").unwrap());
    let right = fs_err::read(&gzip).unwrap();

    let refused = |what: &str| {
        let reader = PrivateGuix::start().unwrap();
        reader.authorize(&[published.depot.guix_public_key()]);
        let said = published.substitute(&reader, &outputs);
        assert!(!reader.has(&outputs[0]), "{what}: {said}");
    };
    fs_err::write(&narinfo, good.replace(&field("NarHash"), &other_hash)).unwrap();
    refused("another hash under the old signature");
    assert!(field("References").len() > "References: ".len());
    fs_err::write(&narinfo, good.replace(&field("References"), "References: ")).unwrap();
    refused("other references under the old signature");
    let unsigned = good.replace(&format!("{}\n", field("Signature")), "");
    fs_err::write(&narinfo, unsigned).unwrap();
    refused("no signature");
    fs_err::write(&narinfo, &good).unwrap();
    // Both files are wrong, so that it does not matter which is chosen.
    for form in fs_err::read_dir(published.tree().join("nar")).unwrap() {
        fs_err::remove_file(form.unwrap().path()).unwrap();
    }
    let wrong = gzip_of(&right, |nar| {
        let at = nar.windows(5).position(|bytes| bytes == b"right").unwrap();
        nar[at..at + 5].copy_from_slice(b"wrong");
    });
    fs_err::write(&gzip, wrong).unwrap();
    refused("another nar under the right narinfo");
    // The one that is right is still believed: what was refused was refused for what was changed.
    fs_err::remove_file(&gzip).unwrap();
    fs_err::write(&gzip, right).unwrap();
    let reader = PrivateGuix::start().unwrap();
    reader.authorize(&[published.depot.guix_public_key()]);
    let said = published.substitute(&reader, &outputs);
    assert!(reader.has(&outputs[0]), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sources_of_what_is_submitted_are_published_by_the_coordinator() {
    let home = guix_or_skip!();
    let reader = guix_or_skip!();
    let Some(farm) = Farm::start(&Config::default(), &[(Role::Submitter, "sue", "")]).await else {
        return;
    };
    let drvs = home.derivations(r#"(say (make "thing" "echo x > $out"))"#);
    let sources = home.derivation(&drvs[0]).input_sources;
    assert_eq!(sources.len(), 1);
    farm.feed("sue", "submit --closure", &home.export_stream(&drvs)).await.expect(0);
    let tree = farm.state_dir().join("public/gnu-store");
    let narinfo = tree.join(format!("{}.narinfo", sources[0].hash().base32()));
    tokio::task::block_in_place(|| {
        wait::until("the source is published", || narinfo.exists());
    });
    let run = farm.state_dir().join("run");
    reader.authorize(&[fs_err::read_to_string(run.join("signing-guix.pub")).unwrap()]);
    let said = substitute(&reader, &tree, &sources);
    assert!(reader.has(&sources[0]), "{said}");
    farm.stop().await;
}

/// A tree that our publisher made of paths of a real store.
struct Published {
    dir: TempDir,
    depot: Depot,
    paths: Vec<StorePath>,
}

impl Published {
    /// Takes the closure of these paths as if agents had uploaded it.
    fn new(
        guix: &PrivateGuix,
        paths: &[StorePath],
        fixed: impl Fn(&StorePath) -> Option<steading::core::derivation::FixedOutput>,
    ) -> Self {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        fs_err::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .unwrap();
        let depot = Depot::open(dir.path(), "farm.example.org-1", [5; 32]).unwrap();
        let mut records = Vec::new();
        let entries = guix.export(paths);
        let mut candidates: Vec<_> = entries.iter().map(|(t, _)| t.path.clone()).collect();
        candidates.sort();
        for (number, (trailer, nar)) in (0..).zip(entries) {
            let path = trailer.path.clone();
            let file = zstd::bulk::compress(&nar, 3).unwrap();
            let offered = OfferedOutput {
                name: "out".to_owned(),
                info: PathInfo {
                    path: path.clone(),
                    nar_hash: trailer.nar_hash,
                    nar_bytes: trailer.nar_bytes,
                    references: trailer.references,
                    deriver: None,
                    signatures: Vec::new(),
                    content_address: None,
                },
                compression: "zstd".to_owned(),
                file_bytes: file.len() as u64,
                file_hash: Sha256::of(&file),
            };
            let rules = UploadRules {
                attempt: AttemptId::from_bytes([number; 16]),
                expected: &offered,
                deriver: trailer.deriver.unwrap_or_else(|| path.clone()),
                candidates: candidates.clone().into(),
                fixed: fixed(&path),
                limits: private_guix::NAR_LIMITS,
            };
            let mut upload = depot.upload(&rules).unwrap();
            upload.write(&file).unwrap();
            let verified = upload.finish(offered.file_hash).unwrap();
            records.push(Arc::new(depot.keep(verified, Timestamp::from_ms(0)).unwrap()));
        }
        let mut publisher = Publisher::new(depot.clone(), BTreeMap::new());
        // As the coordinator does: what is not there in all its forms is made, and given again.
        let report = publisher.publish(records).unwrap();
        assert_eq!(report.visible, []);
        for (_, why) in report.unpublished {
            let Unpublished::OtherForms(record) = why else { continue };
            depot.make_other_forms(&record).unwrap();
            publisher.publish(vec![record]).unwrap();
        }
        let all_visible = candidates.iter().all(|path| depot.shows(path));
        assert!(all_visible, "{candidates:?}");
        Self { dir, depot, paths: candidates }
    }

    fn tree(&self) -> PathBuf {
        self.dir.path().join("public/gnu-store")
    }

    fn substitute(&self, reader: &PrivateGuix, paths: &[StorePath]) -> String {
        substitute(reader, &self.tree(), paths)
    }
}

/// Asks a Guix for paths with this tree as its only substituter; returns what it said. It ends well
/// also when it found nothing.
fn substitute(reader: &PrivateGuix, tree: &Path, paths: &[StorePath]) -> String {
    let output = reader
        .command("guix")
        .arg("build")
        .arg(format!("--substitute-urls=file://{}", tree.display()))
        .args(paths.iter().map(ToString::to_string))
        .output()
        .unwrap();
    format!("{}{}", output.stdout.escape_ascii(), output.stderr.escape_ascii())
}

/// Returns all that is below a path, with contents.
fn tree(path: &Path) -> Vec<(String, Vec<u8>)> {
    let kind = fs_err::symlink_metadata(path).unwrap().file_type();
    let name = path.file_name().unwrap().to_str().unwrap().to_owned();
    if kind.is_symlink() {
        let target = fs_err::read_link(path).unwrap();
        return vec![(name, target.into_os_string().into_encoded_bytes())];
    }
    if kind.is_file() {
        return vec![(name, fs_err::read(path).unwrap())];
    }
    let mut found: Vec<_> =
        fs_err::read_dir(path).unwrap().flat_map(|entry| tree(&entry.unwrap().path())).collect();
    found.sort();
    found.insert(0, (name, Vec::new()));
    found
}

/// Unpacks a gzip file, changes what is in it, and packs it again.
fn gzip_of(packed: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut nar = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut nar).unwrap();
    change(&mut nar);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(&nar).unwrap();
    encoder.finish().unwrap()
}

fn unhex(digits: &str) -> String {
    let bytes = digits.as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    String::from_utf8(bytes.map(byte).collect()).unwrap()
}

fn getrandom(bytes: &mut [u8]) {
    getrandom::fill(bytes).unwrap();
}

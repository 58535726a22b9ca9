//! Tests of the module above.

use super::*;
use crate::core::store_path::PathHash;
use proptest::prelude::*;

fn path(byte: u8, name: &str) -> StorePath {
    StoreDir::nix().path(PathHash::from_bytes([byte; 20]), name).unwrap()
}

fn narinfo() -> NarInfo {
    NarInfo {
        info: PathInfo {
            path: path(1, "hello-2.12.1"),
            nar_hash: Sha256::of(b"nar"),
            nar_bytes: 226_560,
            references: vec![path(1, "hello-2.12.1"), path(2, "glibc-2.38")],
            deriver: Some(path(3, "hello-2.12.1.drv")),
            signatures: vec!["a-1:c2ln".to_owned(), "b-1:c2ln".to_owned()],
            content_address: None,
        },
        url: "nar/x.nar.zst".to_owned(),
        compression: "zstd".to_owned(),
        file_hash: Sha256::of(b"file"),
        file_bytes: 50_184,
    }
}

#[test]
fn the_text_is_the_one_that_nix_writes() {
    insta::assert_snapshot!(narinfo().to_text().unwrap(), @r"
    StorePath: /nix/store/040h2081040h2081040h2081040h2081-hello-2.12.1
    URL: nar/x.nar.zst
    Compression: zstd
    FileHash: sha256:101bq2db3ma3wnf6ycg88s9ar67igjf30kz1sdm1p8zh6s7kb71v
    FileSize: 50184
    NarHash: sha256:0gsyc3g0w8wacg97wwm1iirigsl96k36iijdxiadn8cqcjmx18y1
    NarSize: 226560
    References: 040h2081040h2081040h2081040h2081-hello-2.12.1 081040h2081040h2081040h2081040h2-glibc-2.38
    Deriver: 0c1h60q30c1h60q30c1h60q30c1h60q3-hello-2.12.1.drv
    Sig: a-1:c2ln
    Sig: b-1:c2ln
    ");
}

#[test]
fn the_fingerprint_orders_references_by_text() {
    let mut info = narinfo().info;
    // By bytes the other would come first: the text begins with the last bits.
    let mut bytes = [0u8; 20];
    bytes[19] = 0xff;
    let late = StoreDir::nix().path(PathHash::from_bytes(bytes), "late").unwrap();
    bytes = [0u8; 20];
    bytes[0] = 0xff;
    let early = StoreDir::nix().path(PathHash::from_bytes(bytes), "early").unwrap();
    info.references = vec![late.clone(), early.clone()];
    let expected =
        format!("1;{};sha256:{};226560;{early},{late}", info.path, Sha256::of(b"nar").base32());
    assert_eq!(fingerprint(&info), expected);
}

#[test]
fn every_narinfo_reads_back() {
    let narinfo = narinfo();
    assert_eq!(NarInfo::parse(&narinfo.to_text().unwrap(), &StoreDir::nix()).unwrap(), narinfo);
    let mut bare = narinfo;
    bare.info.references.clear();
    bare.info.deriver = None;
    bare.info.signatures.clear();
    bare.info.content_address = Some("fixed:r:sha256:abc".to_owned());
    assert_eq!(NarInfo::parse(&bare.to_text().unwrap(), &StoreDir::nix()).unwrap(), bare);
}

#[test]
fn what_nix_leaves_out_has_its_meaning() {
    let text = narinfo().to_text().unwrap();
    let text = text.replace("Compression: zstd\n", "").replace("References: ", "Unknown: ");
    let deriver = format!("Deriver: {}", path(3, "hello-2.12.1.drv").base_name());
    let read =
        NarInfo::parse(&text.replace(&deriver, "Deriver: unknown-deriver"), &StoreDir::nix());
    let read = read.unwrap();
    assert_eq!(read.compression, "bzip2");
    assert_eq!(read.info.references, vec![]);
    assert_eq!(read.info.deriver, None);
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let text = narinfo().to_text().unwrap();
    let without = |name: &str| -> String {
        text.split_inclusive('\n').filter(|line| !line.starts_with(name)).collect()
    };
    let with = |name: &str, value: &str| format!("{}{name}: {value}\n", without(name));
    for (rule, text) in [
        ("it is not empty", String::new()),
        ("the last line ends", text.trim_end().to_owned()),
        ("every line has a name", format!("{text}: x\n")),
        ("every line has a value", format!("{text}URL\n")),
        ("no field is there twice", format!("{text}NarSize: 1\n")),
        ("it has a StorePath", without("StorePath")),
        ("it has a URL", without("URL")),
        ("it has a NarHash", without("NarHash")),
        ("it has a NarSize", without("NarSize")),
        ("NarSize is not 0", with("NarSize", "0")),
        ("NarSize is a number", with("NarSize", "+1")),
        ("NarSize fits", with("NarSize", "99999999999999999999")),
        ("NarHash is SHA-256", with("NarHash", &format!("sha512:{}", Sha256::of(b"").base32()))),
        ("NarHash names its kind", with("NarHash", &Sha256::of(b"").base32())),
        ("references are base names", with("References", &path(2, "x").to_string())),
        ("references do not climb", with("References", "../x")),
        ("the store is ours", with("StorePath", "/gnu/store/0c96x2i7vy7wb2jd0jlp1vlp1jvxijzy-x")),
        ("it is short", format!("{text}Note: {}\n", "x".repeat(NARINFO_BYTES_MAX))),
    ] {
        assert!(NarInfo::parse(&text, &StoreDir::nix()).is_err(), "{rule}");
    }
}

#[test]
fn no_value_smuggles_in_a_field() {
    let mut narinfo = narinfo();
    narinfo.info.signatures = vec!["a:b\nURL: elsewhere".to_owned()];
    assert!(matches!(narinfo.to_text(), Err(NarInfoError::Value("Sig"))));
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "((StorePath|NarSize|Sig|References|X): [ -~]{0,20}\n|\\PC{0,20}){0,8}") {
        prop_assert!(NarInfo::parse(&text, &StoreDir::nix()).is_err());
    }
}

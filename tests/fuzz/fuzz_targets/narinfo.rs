//! A narinfo that is accepted can be written, and reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::{
    core::store_path::StoreDir,
    formats::narinfo::{NarInfo, fingerprint},
};

fuzz_target!(|text: &str| {
    let dir = StoreDir::nix();
    if let Ok(narinfo) = NarInfo::parse(text, &dir) {
        assert!(fingerprint(&narinfo.info).starts_with("1;/nix/store/"));
        // A carriage return or an empty value is read, but never written.
        if let Ok(written) = narinfo.to_text() {
            assert_eq!(NarInfo::parse(&written, &dir).expect("we wrote it"), narinfo);
        }
    }
});

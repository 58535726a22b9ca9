//! S-expressions, keys, access lists and signatures of the Guix dialect: what is accepted can be
//! written, and reads back as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::{
    core::hash::Sha256,
    formats::signature::{
        guix::{GuixPublicKey, GuixSecretKey},
        sexp::Sexp,
    },
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(expression) = Sexp::parse(bytes) {
        let text = expression.to_text();
        // Hexadecimal digits take twice the room, and may make it too long.
        if let Ok(read) = Sexp::parse(text.as_bytes()) {
            assert!(read == expression);
        }
    }
    let key = *GuixSecretKey::generate([7; 32]).public();
    key.verify(&Sha256::of(b"text"), bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(key) = GuixPublicKey::parse(text) {
        assert!(GuixPublicKey::parse(&key.to_text()) == Ok(key));
    }
    if let Ok(key) = GuixSecretKey::parse(text) {
        assert!(GuixSecretKey::parse(&key.to_text()).expect("we wrote it").public() == key.public());
    }
    GuixPublicKey::parse_acl(text).ok();
    key.verify_narinfo("facts", text);
});

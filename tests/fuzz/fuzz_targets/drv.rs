//! A derivation that is accepted is written byte for byte as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use steading::core::derivation::Derivation;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(derivation) = Derivation::parse(bytes) {
        assert_eq!(derivation.to_bytes(), bytes);
        std::hint::black_box(derivation.required_system_features());
        std::hint::black_box(derivation.fixed_output());
    }
});

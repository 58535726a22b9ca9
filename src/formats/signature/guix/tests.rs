//! Tests of the module above. That libgcrypt makes the same is tested in `tests/guix.rs`, with a
//! real one.

use super::*;
use proptest::prelude::*;

fn key() -> GuixSecretKey {
    GuixSecretKey::generate([7; 32])
}

#[test]
fn keys_read_back() {
    let secret = GuixSecretKey::parse(&key().to_text()).unwrap();
    assert_eq!(*secret.to_text(), *key().to_text());
    assert_eq!(GuixPublicKey::parse(&secret.public().to_text()).unwrap(), *key().public());
}

#[test]
fn debug_shows_no_secret() {
    let shown = format!("{:?}", key());
    assert!(!shown.contains("0707"), "{shown}");
    assert!(key().to_text().contains("0707"));
}

#[test]
fn what_is_no_key_is_refused() {
    let (secret, public) = (key().to_text(), key().public().to_text());
    let error = |text: &str| GuixSecretKey::parse(text).unwrap_err();
    assert_eq!(error(""), GuixKeyError::Sexp(SexpError::Truncated));
    assert_eq!(error(&public), GuixKeyError::Kind("private-key"));
    let other = GuixSecretKey::generate([8; 32]).to_text();
    let q = |text: &str| text.lines().find(|line| line.contains("(q ")).unwrap().to_owned();
    assert_eq!(error(&secret.replace(&q(&secret), &q(&other))), GuixKeyError::Damaged);
    assert_eq!(error(&secret.replace("(d #", "(d #01")), GuixKeyError::Damaged);
    assert_eq!(error(&secret.replace("(d #", "(e #")), GuixKeyError::Damaged);
    let error = |text: &str| GuixPublicKey::parse(text).unwrap_err();
    assert_eq!(error(&secret), GuixKeyError::Kind("public-key"));
    assert_eq!(error("(public-key (rsa (n #00#) (e #010001#)))"), GuixKeyError::Unsupported);
    assert_eq!(error(&public.replace("25519", "448")), GuixKeyError::Unsupported);
    let flagged = public.replace("(q", "(flags eddsa) (q");
    assert_eq!(error(&flagged), GuixKeyError::Unsupported);
    assert_eq!(error(&public.replace("(q #", "(q #00")), GuixKeyError::Damaged);
    // y = 2 is on no point; y = 2²⁵⁵ − 18 is another text for y = 1.
    for bytes in [format!("02{}", "00".repeat(31)), format!("ee{}7f", "ff".repeat(30))] {
        let text = format!("(public-key (ecc (curve Ed25519) (q #{bytes}#)))");
        assert_eq!(error(&text), GuixKeyError::Damaged, "{bytes}");
    }
}

#[test]
fn access_lists_tell_who_may_bring_paths() {
    let keys = [1, 2, 3].map(|n| *GuixSecretKey::generate([n; 32]).public());
    let [a, b, c] = keys.map(|key| key.to_text());
    let acl = format!(
        "(acl (entry {a} (tag (guix import))) (entry {b} (tag (guix other)))
         (entry (public-key (rsa (n #00#) (e #03#))) (tag (guix import)))
         (entry {c} (tag (guix import))))"
    );
    assert_eq!(GuixPublicKey::parse_acl(&acl).unwrap(), [keys[0], keys[2]]);
    assert_eq!(GuixPublicKey::parse_acl("(acl)").unwrap(), []);
    assert_eq!(GuixPublicKey::parse_acl(&a), Err(GuixKeyError::Kind("acl")));
    assert!(GuixPublicKey::parse_acl(&acl.replace("(q #", "(q #00")).is_err());
}

#[test]
fn only_the_keys_own_signature_over_the_same_digest_counts() {
    let (digest, other_digest) = (Sha256::of(b"text"), Sha256::of(b"texts"));
    let signature = key().sign(&digest);
    let public = key().public;
    let verify = |text: &str| public.verify(&digest, text.as_bytes());
    assert!(verify(&signature));
    assert!(!public.verify(&other_digest, signature.as_bytes()));
    let hex = |hash: &Sha256| hash.hex().to_ascii_uppercase();
    let relabeled = signature.replace(&hex(&digest), &hex(&other_digest));
    assert!(!public.verify(&other_digest, relabeled.as_bytes()));
    let stranger = GuixSecretKey::generate([8; 32]);
    assert!(!verify(&stranger.sign(&digest)));
    // The stranger's numbers with our key beside them.
    let ours = public.to_text();
    let claimed = stranger.sign(&digest);
    let claimed = Sexp::parse(claimed.as_bytes()).unwrap();
    let Sexp::List(mut parts) = claimed else { panic!("a list") };
    parts.pop();
    parts.push(Sexp::parse(ours.as_bytes()).unwrap());
    assert!(!verify(&Sexp::List(parts).to_text()));
    assert!(!verify(""));
    assert!(!verify("(signature)"));
    assert!(!verify(&signature.replace("ecdsa", "eddsa")));
    let zero = |name: &str| {
        let line = signature.lines().find(|line| line.contains(&format!("({name} #"))).unwrap();
        signature.replace(line, &format!("({name} #00#)"))
    };
    assert!(!verify(&zero("r")) && !verify(&zero("s")));
}

#[test]
fn narinfos_are_signed_by_the_text_above() {
    let signature = key().sign_narinfo("a;b c", "facts");
    assert!(signature.starts_with("1;a-b-c;"), "{signature}");
    let public = key().public;
    assert!(public.verify_narinfo("facts", &signature));
    assert!(!public.verify_narinfo("fact", &signature));
    assert!(!public.verify_narinfo("facts", &signature.replacen('1', "2", 1)));
    assert!(!public.verify_narinfo("facts", &format!("{signature};")));
    assert!(!public.verify_narinfo("facts", "1;a;*"));
}

proptest! {
    #[test]
    fn every_key_verifies_what_it_signs_and_nothing_else(
        seed in any::<[u8; 32]>(), digest in any::<[u8; 32]>(), bit in 0..256usize,
    ) {
        let key = GuixSecretKey::generate(seed);
        let digest = Sha256::from_bytes(digest);
        let signature = key.sign(&digest);
        prop_assert_eq!(&signature, &key.sign(&digest));
        prop_assert!(key.public().verify(&digest, signature.as_bytes()));
        let mut other = *digest.as_bytes();
        other[bit / 8] ^= 1 << (bit % 8);
        let other = Sha256::from_bytes(other);
        // The last three bits do not count; the text says which digest is meant all the same.
        prop_assert!(!key.public().verify(&other, signature.as_bytes()));
    }

    #[test]
    fn a_signature_with_a_byte_changed_counts_only_if_it_says_the_same(
        at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let digest = Sha256::of(b"text");
        let signature = key().sign(&digest);
        let mut changed = signature.clone().into_bytes();
        let at = at.index(changed.len());
        changed[at] = byte;
        if key().public().verify(&digest, &changed) {
            let said = |text: &[u8]| signed_numbers(&Sexp::parse(text).unwrap(), &digest).unwrap();
            prop_assert_eq!(said(&changed), said(signature.as_bytes()));
        }
    }
}

//! Deterministic ECDSA over the points of Ed25519, as libgcrypt makes it for keys that do not say
//! `(flags eddsa)`.
//!
//! The curve and its base point are those of RFC 8032, the algorithm is that of RFC 6979 with
//! HMAC-SHA256: numbers are big-endian, the order of the base point has 253 bits, so of a digest
//! the first 253 bits count. What depends on the secret is computed in constant time; points and
//! numbers that become part of a signature are public.
//! Source: libgcrypt `cipher/ecc-ecdsa.c` and `cipher/dsa-common.c`.
#![expect(
    clippy::arithmetic_side_effects,
    reason = "arithmetic modulo a prime neither overflows nor panics"
)]

use crate::core::hash::Sha256;
use crypto_bigint::{U256, const_prime_monty_params, modular::ConstMontyForm};
use curve25519_dalek::{
    Scalar,
    edwards::{CompressedEdwardsY, EdwardsPoint},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use zeroize::{Zeroize as _, Zeroizing};

/// How many bits of a digest do not count: 256 less the 253 of the order.
const DIGEST_BITS_SPARE: u32 = 3;
/// d of the curve's equation −x² + y² = 1 + d·x²·y². Source: RFC 8032, section 5.1.
const CURVE_D: U256 =
    U256::from_be_hex("52036cee2b6ffe738cc740797779e89800700a4d4141d8ab75eb4dca135978a3");

const_prime_monty_params!(
    Prime,
    U256,
    "7fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffed",
    2,
    "2²⁵⁵ − 19, the prime of the curve's coordinates."
);
/// A number modulo the prime.
type Coordinate = ConstMontyForm<Prime, { U256::LIMBS }>;

/// A secret number, big-endian, and what follows from it; wiped when dropped.
pub(super) struct SecretNumber {
    bytes: Zeroizing<[u8; 32]>,
    scalar: Zeroizing<Scalar>,
}

/// The two numbers of a signature, both from 1 to less than the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbers {
    pub(super) r: Scalar,
    pub(super) s: Scalar,
}

impl SecretNumber {
    /// Takes big-endian bytes.
    pub(super) fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        let mut little_endian = Zeroizing::new(*bytes);
        little_endian.reverse();
        let scalar = Zeroizing::new(Scalar::from_bytes_mod_order(*little_endian));
        Self { bytes, scalar }
    }

    /// Returns the big-endian bytes.
    pub(super) fn as_bytes(&self) -> &[u8; 32] {
        &self.bytes
    }

    /// Returns the public point.
    pub(super) fn point(&self) -> CompressedEdwardsY {
        EdwardsPoint::mul_base(&self.scalar).compress()
    }

    /// Signs a digest.
    pub(super) fn sign(&self, digest: &Sha256) -> Numbers {
        let z = Scalar::from_bytes_mod_order(counting_bits(digest.as_bytes()));
        let nonce = Nonces::new(&self.bytes, &z).next();
        let r = x_coordinate(EdwardsPoint::mul_base(&nonce).compress());
        let inverse = Zeroizing::new(nonce.invert());
        let with_secret = Zeroizing::new(r * *self.scalar);
        // Neither number is 0 but with a chance of 2⁻²⁵²; such a signature would only be refused.
        Numbers { r, s: *inverse * (z + *with_secret) }
    }
}

/// Tells whether the numbers are a signature of the digest by the owner of the point.
pub(super) fn verify(point: &EdwardsPoint, digest: &Sha256, numbers: &Numbers) -> bool {
    let Numbers { r, s } = numbers;
    if *r == Scalar::ZERO || *s == Scalar::ZERO {
        return false;
    }
    let z = Scalar::from_bytes_mod_order(counting_bits(digest.as_bytes()));
    let inverse = s.invert();
    let (of_base, of_point) = (z * inverse, r * inverse);
    let sum = EdwardsPoint::vartime_double_scalar_mul_basepoint(&of_point, point, &of_base);
    x_coordinate(sum.compress()) == *r
}

/// Returns the first 253 of 256 bits as a little-endian number.
fn counting_bits(big_endian: &[u8; 32]) -> [u8; 32] {
    let mut number = U256::from_be_slice(big_endian).shr_vartime(DIGEST_BITS_SPARE);
    let bytes = number.to_le_bytes().into();
    number.as_mut_words().zeroize();
    bytes
}

/// Returns x of a point of the curve, modulo the order.
///
/// Only y and the lowest bit of x are in a compressed point: x² = (y² − 1) / (d·y² + 1). The
/// denominator is never 0, because −1/d is no square.
fn x_coordinate(point: CompressedEdwardsY) -> Scalar {
    let mut bytes = point.to_bytes();
    let (mut is_odd, mut y) = (false, U256::ZERO);
    if let Some(last) = bytes.last_mut() {
        is_odd = *last & 0x80 != 0;
        *last &= 0x7f;
        y = U256::from_le_slice(&bytes);
    }
    let squared = Coordinate::new(&y).square();
    let denominator = Coordinate::new(&CURVE_D) * squared + Coordinate::ONE;
    let inverse = denominator.invert_vartime().unwrap_or(Coordinate::ZERO);
    let x_squared = (squared - Coordinate::ONE) * inverse;
    let x = x_squared.sqrt().unwrap_or(Coordinate::ZERO);
    let x = if bool::from(x.retrieve().is_odd()) == is_odd { x } else { -x };
    Scalar::from_bytes_mod_order(x.retrieve().to_le_bytes().into())
}

/// The stream of secret numbers that follows from a key and a digest: RFC 6979, section 3.2.
struct Nonces {
    key: Zeroizing<[u8; 32]>,
    value: Zeroizing<[u8; 32]>,
}

impl Nonces {
    /// Does steps b to g. The secret goes in as it is, also when it is larger than the order.
    fn new(secret: &[u8; 32], z: &Scalar) -> Self {
        let mut digest = z.to_bytes();
        digest.reverse();
        let mut nonces = Self { key: Zeroizing::new([0; 32]), value: Zeroizing::new([1; 32]) };
        nonces.mix(&[&[0], secret, &digest]);
        nonces.mix(&[&[1], secret, &digest]);
        nonces
    }

    /// Does step h: returns the next number from 1 to less than the order.
    fn next(&mut self) -> Zeroizing<Scalar> {
        loop {
            self.value = self.hmac(&[]);
            let candidate = Zeroizing::new(counting_bits(&self.value));
            let scalar = Scalar::from_canonical_bytes(*candidate);
            // About half are too large; that says nothing about the one that is taken.
            let scalar = Zeroizing::new(scalar.unwrap_or(Scalar::ZERO));
            if *scalar != Scalar::ZERO {
                return scalar;
            }
            self.mix(&[&[0]]);
        }
    }

    fn mix(&mut self, more: &[&[u8]]) {
        self.key = self.hmac(more);
        self.value = self.hmac(&[]);
    }

    /// Returns the HMAC of the value and what follows it.
    fn hmac(&self, more: &[&[u8]]) -> Zeroizing<[u8; 32]> {
        // Keys of HMAC are padded with zeros to the length of a block.
        let mut block = Zeroizing::new([0; 64]);
        block.iter_mut().zip(&*self.key).for_each(|(to, from)| *to = *from);
        let mut mac = Hmac::<sha2::Sha256>::new((&*block).into());
        mac.update(&*self.value);
        for part in more {
            mac.update(part);
        }
        Zeroizing::new(mac.finalize().into_bytes().into())
    }
}

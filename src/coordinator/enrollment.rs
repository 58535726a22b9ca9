//! Keys on their way into the keydir: those that wait for an admin, and tokens that let them in.
//!
//! The keydir stays the one truth about who may come in. What is here only leads there: a key that
//! is approved, by an admin or by a token, gets a file in the keydir, and is forgotten here.
//!
//! A token is `steading-token-ID-SECRET`. Of the secret, only an HMAC is kept; guessing it takes
//! 2^125 tries, of which a few per minute are answered.

use super::{
    engine_thread::{EngineGone, EngineHandle},
    readers::Readers,
};
use crate::{
    core::{
        change::Change,
        engine::Input,
        enrollment::{EnrollmentChange, PendingKey, TokenRecord, TokenUse},
        hash::Sha256,
        id::Name,
        time::{Monotonic, Timestamp},
    },
    ssh::{
        Role,
        keyfile::{self, AddError, Addition, Removed},
    },
    store::StoreError,
    telemetry::Clock,
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use std::{
    collections::BTreeMap,
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{sync::Mutex, task::spawn_blocking};

/// How many keys may wait at a time.
pub const PENDING_MAX: usize = 1_000;
/// How many of them may come from one address.
pub const PENDING_PER_ADDRESS_MAX: usize = 20;
/// How long a key waits, in milliseconds: two weeks, so that it outlasts an admin's holidays.
const PENDING_MS: i64 = 14 * 24 * 60 * 60 * 1_000;
/// How many tokens may be kept at a time, with those that are worth nothing any more.
const TOKENS_MAX: usize = 10_000;
/// How long a token is listed after it has become worthless, in milliseconds.
const SPENT_MS: i64 = 30 * 24 * 60 * 60 * 1_000;
/// How many wrong tokens from one address are answered at once; whoever has a token is right at the
/// first try.
const GUESSES_MAX: u64 = 10;
/// How long it takes until another one is answered, in milliseconds.
const GUESS_MS: u64 = 6_000;
/// From how many addresses wrong tokens are remembered; beyond, nobody new is answered.
const GUESSERS_MAX: usize = 10_000;
/// What every token begins with.
const PREFIX: &str = "steading-token-";
/// What ids and secrets are made of: 32 signs that are not mistaken for one another.
const SIGNS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// How many signs an id has, of five bits each.
const ID_SIGNS: usize = 8;
/// The same of a secret: 125 bits.
const SECRET_SIGNS: usize = 25;
/// Names that the coordinator uses itself.
const RESERVED: [&str; 4] = ["coordinator", "hooks", "stranger", "enroll"];

/// Why a key did not get on.
#[derive(Debug, thiserror::Error)]
pub enum EnrollmentError {
    /// There have been too many wrong tokens.
    #[error("too many wrong tokens were tried lately: try again in a minute")]
    Guessing,
    /// The token is none, or its secret is wrong.
    #[error("this is no token of this coordinator: ask an admin for ‘keys token new’")]
    NoToken,
    /// The token was right, and is worth nothing any more.
    #[error("the token is worth nothing any more ({}): ask an admin for a new one", .0.word())]
    Spent(Spent),
    /// The token had let this key in, which was taken away since.
    #[error("the token let this key in before, and it was removed since: ask an admin")]
    Removed,
    /// Too many keys wait.
    #[error("{0}: ask an admin to decide about them, or for a token")]
    ListFull(&'static str),
    /// There are too many tokens.
    #[error("there are {TOKENS_MAX} tokens: revoke some")]
    TooManyTokens,
    /// A name is used by the coordinator itself.
    #[error("the name {0} is the coordinator's own: choose another")]
    Reserved(Name),
    /// A name belongs to somebody.
    #[error(
        "the name {name} is taken by {}: choose another with --name, or let an admin approve the \
         key as another one of the same", path.display()
    )]
    Taken {
        /// The name.
        name: Name,
        /// A file of its owner.
        path: PathBuf,
    },
    /// No key with this fingerprint waits.
    #[error("no key with the fingerprint {0} waits: ‘keys list’ has all that do")]
    NotWaiting(String),
    /// No token has this id.
    #[error("there is no token {0}: ‘keys token list’ lists them")]
    NoSuchToken(String),
    /// The key is none that may come in.
    #[error("the key cannot be used: {0}")]
    Key(String),
    /// The keydir cannot be written.
    #[error("the keydir cannot be written")]
    File(#[source] io::Error),
    /// The process is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a token is worth nothing any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// Somebody said so.
    Revoked,
    /// Its time is over.
    Expired,
    /// As many keys came in as it was for.
    UsedUp,
}

impl Spent {
    /// Returns the word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Revoked => "revoked",
            Self::Expired => "expired",
            Self::UsedUp => "used-up",
        }
    }
}

/// Somebody whose key is known nowhere.
#[derive(Debug, Clone)]
pub struct Applicant {
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The key, as `ssh-ed25519 AAAA…`.
    pub key: String,
    /// What they would like to be called.
    pub name: Option<Name>,
    /// Where they come from.
    pub address: IpAddr,
}

/// A token as it is listed.
#[derive(Debug, Clone)]
pub struct Token {
    /// What was written down when it was made.
    pub record: TokenRecord,
    /// Who came in with it.
    pub used: Vec<TokenUse>,
}

impl Token {
    /// Returns why it is worth nothing at this time, if so.
    #[must_use]
    pub fn spent(&self, now: Timestamp) -> Option<Spent> {
        let used_up = self.used.len() >= usize::try_from(self.record.uses).unwrap_or(usize::MAX);
        match () {
            () if self.record.revoked.is_some() => Some(Spent::Revoked),
            () if self.record.expires <= now => Some(Spent::Expired),
            () if used_up => Some(Spent::UsedUp),
            () => None,
        }
    }
}

/// The way to all that; cheap to clone.
#[derive(Debug, Clone)]
pub struct Enrollment {
    engine: EngineHandle,
    clock: Clock,
    keydir: Arc<Path>,
    /// Held while the keydir is changed, so that one change sees the other.
    desk: Arc<Mutex<Desk>>,
}

#[derive(Debug)]
struct Desk {
    pending: BTreeMap<String, PendingKey>,
    tokens: BTreeMap<String, Token>,
    guessers: BTreeMap<IpAddr, Guesses>,
}

impl Desk {
    /// Returns whether a token from there may be looked at.
    fn may_look(&mut self, address: IpAddr, now: Monotonic) -> bool {
        match self.guessers.get_mut(&address) {
            Some(guesses) => guesses.may_look(now),
            None => self.guessers.len() < GUESSERS_MAX,
        }
    }

    fn was_wrong(&mut self, address: IpAddr, now: Monotonic) {
        self.guessers.retain(|_, guesses| guesses.earn(now) < GUESSES_MAX * GUESS_MS);
        self.guessers.entry(address).or_insert_with(|| Guesses::new(now)).was_wrong();
    }
}

/// How many wrong tokens from one address may be answered now.
#[derive(Debug)]
struct Guesses {
    /// In milliseconds of waiting that are saved up.
    saved_ms: u64,
    counted: Monotonic,
}

impl Guesses {
    fn new(now: Monotonic) -> Self {
        Self { saved_ms: GUESSES_MAX * GUESS_MS, counted: now }
    }

    /// Returns how much waiting is saved up.
    fn earn(&mut self, now: Monotonic) -> u64 {
        let passed = now.as_ms().saturating_sub(self.counted.as_ms());
        self.saved_ms = self.saved_ms.saturating_add(passed).min(GUESSES_MAX * GUESS_MS);
        self.counted = now;
        self.saved_ms
    }

    fn may_look(&mut self, now: Monotonic) -> bool {
        self.earn(now) >= GUESS_MS
    }

    fn was_wrong(&mut self) {
        self.saved_ms = self.saved_ms.saturating_sub(GUESS_MS);
    }
}

impl Enrollment {
    /// Goes on with what an earlier process has written down.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn load(
        engine: EngineHandle,
        readers: &Readers,
        clock: Clock,
        keydir: PathBuf,
    ) -> Result<Self, StoreError> {
        let (pending, tokens, uses) = readers
            .read(|reader| {
                Ok::<_, StoreError>((
                    reader.pending_keys()?,
                    reader.tokens()?,
                    reader.token_uses()?,
                ))
            })
            .await?;
        let pending = pending.into_iter().map(|one| (one.fingerprint.clone(), one)).collect();
        let tokens = tokens.into_iter().map(|record| {
            let bearers = uses.iter().filter(|one| one.token == record.id).cloned();
            (record.id.clone(), Token { used: bearers.collect(), record })
        });
        let desk = Desk { pending, tokens: tokens.collect(), guessers: BTreeMap::new() };
        Ok(Self { engine, clock, keydir: keydir.into(), desk: Arc::new(Mutex::new(desk)) })
    }

    /// Lets a key wait for an admin. Asking again changes the name and lets it wait anew.
    ///
    /// # Errors
    /// [`EnrollmentError::ListFull`], [`EnrollmentError::Reserved`], [`EnrollmentError::Stopping`].
    pub async fn wait(&self, applicant: Applicant) -> Result<(), EnrollmentError> {
        refuse_reserved(applicant.name.as_ref())?;
        keyfile::not_revoked(&self.keydir, &applicant.fingerprint).map_err(EnrollmentError::Key)?;
        let mut desk = self.desk.lock().await;
        let now = self.clock.now().wall;
        self.forget_old(&mut desk, now).await?;
        let address = applicant.address.to_canonical().to_string();
        if !desk.pending.contains_key(&applicant.fingerprint) {
            let from_there = desk.pending.values().filter(|one| one.address == address).count();
            if desk.pending.len() >= PENDING_MAX {
                return Err(EnrollmentError::ListFull("too many keys wait"));
            }
            if from_there >= PENDING_PER_ADDRESS_MAX {
                return Err(EnrollmentError::ListFull("too many keys wait that came from there"));
            }
        }
        let Applicant { fingerprint, key, name, address: _ } = applicant;
        let pending =
            PendingKey { fingerprint: fingerprint.clone(), key, name, address, asked: now };
        self.write(EnrollmentChange::Pending(pending.clone())).await?;
        desk.pending.insert(fingerprint, pending);
        Ok(())
    }

    /// Lets a key in that comes with a token. The same key with the same token again is let in
    /// again, under the same name, and is no other use.
    ///
    /// # Errors
    /// [`EnrollmentError`]; nothing is changed then.
    pub async fn redeem(
        &self,
        applicant: Applicant,
        token: &str,
    ) -> Result<(Role, Name), EnrollmentError> {
        refuse_reserved(applicant.name.as_ref())?;
        let mut desk = self.desk.lock().await;
        let now = self.clock.now();
        let address = applicant.address.to_canonical();
        if !desk.may_look(address, now.mono) {
            return Err(EnrollmentError::Guessing);
        }
        let Some(known) = find(&desk.tokens, token) else {
            desk.was_wrong(address, now.mono);
            return Err(EnrollmentError::NoToken);
        };
        let (id, role) = (known.record.id.clone(), known.record.role.clone());
        let Some(role) = Role::of_word(&role) else { return Err(EnrollmentError::NoToken) };
        let before = known.used.iter().find(|one| one.fingerprint == applicant.fingerprint);
        if let Some(used) = before {
            // Whoever takes a key away does not expect that a token brings it back.
            let is_in = self.lists(role, &used.name, &applicant.key);
            return if is_in {
                Ok((role, used.name.clone()))
            } else {
                Err(EnrollmentError::Removed)
            };
        }
        if let Some(reason) = known.spent(now.wall) {
            return Err(EnrollmentError::Spent(reason));
        }
        let name = applicant.name.clone();
        let name = name.unwrap_or_else(|| made_up_name(&applicant.fingerprint));
        // The file first: should the process end behind it, the key is in, and the token has one
        // use too many. The other way round a machine would be locked out.
        self.enter(role, &name, &applicant.key, Addition::NewPrincipal).await?;
        let fingerprint = applicant.fingerprint.clone();
        let used = TokenUse { token: id.clone(), fingerprint, name: name.clone(), at: now.wall };
        self.write(EnrollmentChange::TokenUsed(used.clone())).await?;
        if let Some(token) = desk.tokens.get_mut(&id) {
            token.used.push(used);
        }
        self.wait_no_more(&mut desk, &applicant.fingerprint).await?;
        Ok((role, name))
    }

    /// Lets a key in that waits. Returns its file.
    ///
    /// # Errors
    /// [`EnrollmentError`]; nothing is changed then.
    pub async fn approve(
        &self,
        fingerprint: &str,
        role: Role,
        name: &Name,
        addition: Addition,
    ) -> Result<PathBuf, EnrollmentError> {
        refuse_reserved(Some(name))?;
        let mut desk = self.desk.lock().await;
        let Some(pending) = desk.pending.get(fingerprint) else {
            return Err(EnrollmentError::NotWaiting(fingerprint.to_owned()));
        };
        let key = pending.key.clone();
        let path = self.enter(role, name, &key, addition).await?;
        self.wait_no_more(&mut desk, fingerprint).await?;
        Ok(path)
    }

    /// Takes a key out of the keydir and off the list of those that wait, and notes that neither a
    /// token nor a certificate makes it known again. Returns the places that it had in the keydir,
    /// and whether it waited.
    ///
    /// # Errors
    /// [`EnrollmentError::File`], [`EnrollmentError::Stopping`].
    pub async fn revoke(&self, fingerprint: &str) -> Result<(Vec<Removed>, bool), EnrollmentError> {
        let mut desk = self.desk.lock().await;
        let (keydir, text) = (Arc::clone(&self.keydir), fingerprint.to_owned());
        let removing = spawn_blocking(move || {
            keyfile::revoke(&keydir, &text)?;
            keyfile::remove(&keydir, &text)
        });
        let removed = removing.await.map_err(io::Error::other).and_then(|result| result);
        let removed = removed.map_err(EnrollmentError::File)?;
        let waited = self.wait_no_more(&mut desk, fingerprint).await?;
        Ok((removed, waited))
    }

    /// Returns the keys that wait, the first one first.
    ///
    /// # Errors
    /// [`EnrollmentError::Stopping`].
    pub async fn pending(&self) -> Result<Vec<PendingKey>, EnrollmentError> {
        let mut desk = self.desk.lock().await;
        self.forget_old(&mut desk, self.clock.now().wall).await?;
        let mut all: Vec<PendingKey> = desk.pending.values().cloned().collect();
        all.sort_by(|a, b| (a.asked, &a.fingerprint).cmp(&(b.asked, &b.fingerprint)));
        Ok(all)
    }

    /// Counts the keys that wait.
    pub async fn count_pending(&self) -> usize {
        let old = self.clock.now().wall.plus_ms(-PENDING_MS);
        self.desk.lock().await.pending.values().filter(|one| one.asked >= old).count()
    }

    /// Makes a token, and returns it with its secret, which is nowhere else.
    ///
    /// # Errors
    /// [`EnrollmentError::TooManyTokens`], [`EnrollmentError::Stopping`].
    pub async fn new_token(
        &self,
        role: Role,
        expires: Timestamp,
        uses: u32,
        by: Name,
    ) -> Result<(String, TokenRecord), EnrollmentError> {
        let mut desk = self.desk.lock().await;
        let now = self.clock.now().wall;
        self.forget_old(&mut desk, now).await?;
        if desk.tokens.len() >= TOKENS_MAX {
            return Err(EnrollmentError::TooManyTokens);
        }
        let (id, secret) = (random_signs(ID_SIGNS), random_signs(SECRET_SIGNS));
        let record = TokenRecord {
            id: id.clone(),
            hash: Sha256::from_bytes(keyed_hash(&id, &secret).finalize().into_bytes().into()),
            role: role.word().to_owned(),
            uses,
            made_by: by,
            made: now,
            expires,
            revoked: None,
        };
        self.write(EnrollmentChange::TokenMade(record.clone())).await?;
        desk.tokens.insert(id.clone(), Token { record: record.clone(), used: Vec::new() });
        Ok((format!("{PREFIX}{id}-{secret}"), record))
    }

    /// Returns all tokens, the oldest first.
    pub async fn tokens(&self) -> Vec<Token> {
        let desk = self.desk.lock().await;
        let mut all: Vec<Token> = desk.tokens.values().cloned().collect();
        all.sort_by(|a, b| (a.record.made, &a.record.id).cmp(&(b.record.made, &b.record.id)));
        all
    }

    /// Makes a token worthless. What came in with it stays.
    ///
    /// # Errors
    /// [`EnrollmentError::NoSuchToken`], [`EnrollmentError::Stopping`].
    pub async fn revoke_token(&self, id: &str) -> Result<Token, EnrollmentError> {
        let mut desk = self.desk.lock().await;
        let at = self.clock.now().wall;
        let Some(token) = desk.tokens.get_mut(id) else {
            return Err(EnrollmentError::NoSuchToken(id.chars().take(64).collect()));
        };
        if token.record.revoked.is_none() {
            self.write(EnrollmentChange::TokenRevoked { id: id.to_owned(), at }).await?;
            token.record.revoked = Some(at);
        }
        Ok(token.clone())
    }

    /// Returns whether a file of the keydir has a key as this writes it.
    fn lists(&self, role: Role, name: &Name, key: &str) -> bool {
        let path = self.keydir.join(role.folder()).join(format!("{name}.pub"));
        fs_err::read_to_string(path).is_ok_and(|text| text.trim_end() == key)
    }

    async fn enter(
        &self,
        role: Role,
        name: &Name,
        key: &str,
        addition: Addition,
    ) -> Result<PathBuf, EnrollmentError> {
        let (keydir, owner, line) = (Arc::clone(&self.keydir), name.clone(), key.to_owned());
        let adding = spawn_blocking(move || keyfile::add(&keydir, role, &owner, &line, addition));
        match adding.await {
            Ok(Ok(path)) => Ok(path),
            Ok(Err(AddError::Taken(path))) => {
                Err(EnrollmentError::Taken { name: name.clone(), path })
            }
            Ok(Err(AddError::Line(text))) => Err(EnrollmentError::Key(text)),
            Ok(Err(AddError::File(error))) => Err(EnrollmentError::File(error)),
            Err(error) => Err(EnrollmentError::File(io::Error::other(error))),
        }
    }

    async fn wait_no_more(
        &self,
        desk: &mut Desk,
        fingerprint: &str,
    ) -> Result<bool, EnrollmentError> {
        if desk.pending.remove(fingerprint).is_none() {
            return Ok(false);
        }
        let fingerprint = fingerprint.to_owned();
        self.write(EnrollmentChange::PendingGone { fingerprint }).await?;
        Ok(true)
    }

    /// Forgets keys that have waited too long, and tokens that have long been worthless.
    async fn forget_old(&self, desk: &mut Desk, now: Timestamp) -> Result<(), EnrollmentError> {
        let old = now.plus_ms(-PENDING_MS);
        let waited = desk.pending.values().filter(|one| one.asked < old);
        let waited: Vec<String> = waited.map(|one| one.fingerprint.clone()).collect();
        for fingerprint in waited {
            self.wait_no_more(desk, &fingerprint).await?;
        }
        let long_ago = now.plus_ms(-SPENT_MS);
        let spent = desk.tokens.values().map(|token| &token.record).filter(|record| {
            record.expires < long_ago || record.revoked.is_some_and(|at| at < long_ago)
        });
        let spent: Vec<String> = spent.map(|record| record.id.clone()).collect();
        for id in spent {
            desk.tokens.remove(&id);
            self.write(EnrollmentChange::TokenForgotten { id }).await?;
        }
        Ok(())
    }

    /// Makes a change durable.
    async fn write(&self, change: EnrollmentChange) -> Result<(), EnrollmentError> {
        let changes = vec![Change::Enrollment(Box::new(change))];
        self.engine.request(|token| Input::Record { token: Some(token), changes }).await?;
        Ok(())
    }
}

fn refuse_reserved(name: Option<&Name>) -> Result<(), EnrollmentError> {
    match name {
        Some(name) if RESERVED.contains(&name.as_str()) => {
            Err(EnrollmentError::Reserved(name.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

/// Returns the token whose secret this has.
fn find<'a>(tokens: &'a BTreeMap<String, Token>, text: &str) -> Option<&'a Token> {
    let (id, secret) = text.trim().strip_prefix(PREFIX)?.split_once('-')?;
    let token = tokens.get(id)?;
    // Takes the same time wherever the first difference is.
    keyed_hash(id, secret).verify_slice(token.record.hash.as_bytes()).ok()?;
    Some(token)
}

fn keyed_hash(id: &str, secret: &str) -> Hmac<sha2::Sha256> {
    let mut hash = Hmac::new_from_slice(id.as_bytes()).expect("a key of any length is taken");
    hash.update(secret.as_bytes());
    hash
}

fn random_signs(number: usize) -> String {
    let mut bytes = vec![0; number];
    getrandom::fill(&mut bytes).expect("the operating system has randomness");
    // 256 is 8 times 32, so that each sign is as likely as the others.
    let sign = |byte: &u8| char::from(SIGNS[usize::from(*byte) % SIGNS.len()]);
    bytes.iter().map(sign).collect()
}

/// Returns a name for somebody who has none: different for different keys.
fn made_up_name(fingerprint: &str) -> Name {
    let signs = fingerprint.trim_start_matches("SHA256:").chars();
    let tail: String = signs.filter(char::is_ascii_alphanumeric).take(10).collect();
    format!("key-{tail}").parse().expect("letters and digits are a name")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_ms(1_800_000_000_000);

    fn token(id: &str, secret: &str) -> Token {
        let hash = keyed_hash(id, secret).finalize().into_bytes().into();
        let record = TokenRecord {
            id: id.to_owned(),
            hash: Sha256::from_bytes(hash),
            role: "agent".to_owned(),
            uses: 2,
            made_by: "ada".parse().unwrap(),
            made: NOW,
            expires: NOW.plus_ms(1_000),
            revoked: None,
        };
        Token { record, used: Vec::new() }
    }

    fn used(token: &Token, fingerprint: &str) -> TokenUse {
        let fingerprint = fingerprint.to_owned();
        let name = "amber".parse().unwrap();
        TokenUse { token: token.record.id.clone(), fingerprint, name, at: NOW }
    }

    #[test]
    fn a_token_is_found_by_its_secret_only() {
        let tokens = BTreeMap::from([("abc".to_owned(), token("abc", "right"))]);
        assert!(find(&tokens, "steading-token-abc-right").is_some());
        assert!(find(&tokens, " steading-token-abc-right\n").is_some());
        for text in [
            "",
            "right",
            "abc-right",
            "steading-token-abc",
            "steading-token-abc-",
            "steading-token-abc-wrong",
            "steading-token-abc-right-",
            "steading-token-abd-right",
            "steading-token-ABC-right",
        ] {
            assert!(find(&tokens, text).is_none(), "{text}");
        }
    }

    #[test]
    fn tokens_are_spent_by_use_by_time_and_by_word() {
        let mut one = token("abc", "right");
        assert_eq!(one.spent(NOW), None);
        assert_eq!(one.spent(NOW.plus_ms(1_000)), Some(Spent::Expired));
        one.used.push(used(&one, "a"));
        assert_eq!(one.spent(NOW), None);
        one.used.push(used(&one, "b"));
        assert_eq!(one.spent(NOW), Some(Spent::UsedUp));
        one.record.revoked = Some(NOW);
        assert_eq!(one.spent(NOW), Some(Spent::Revoked));
    }

    #[test]
    fn guessing_is_slowed_down_and_waiting_helps() {
        let mut guesses = Guesses::new(Monotonic::from_ms(0));
        for _ in 0..GUESSES_MAX {
            assert!(guesses.may_look(Monotonic::from_ms(0)));
            guesses.was_wrong();
        }
        assert!(!guesses.may_look(Monotonic::from_ms(GUESS_MS - 1)));
        assert!(guesses.may_look(Monotonic::from_ms(GUESS_MS)));
    }

    #[test]
    fn secrets_are_long_and_names_are_names() {
        assert_eq!(random_signs(SECRET_SIGNS).len(), SECRET_SIGNS);
        assert_ne!(random_signs(SECRET_SIGNS), random_signs(SECRET_SIGNS));
        assert_eq!(made_up_name("SHA256:a/b+cdefghijklm").as_str(), "key-abcdefghij");
    }
}

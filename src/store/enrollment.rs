//! Tokens, and keys that wait for an admin.

use super::{Reader, StoreError, doing, row};
use crate::core::{
    enrollment::{EnrollmentChange, PendingKey, TokenRecord, TokenUse},
    id::Name,
    time::Timestamp,
};
use rusqlite::{Connection, Row, named_params};

/// Makes a change of enrollments.
pub(super) fn apply(connection: &Connection, change: &EnrollmentChange) -> Result<(), StoreError> {
    match change {
        EnrollmentChange::TokenMade(token) => insert_token(connection, token),
        EnrollmentChange::TokenUsed(used) => insert_use(connection, used),
        EnrollmentChange::TokenRevoked { id, at } => connection
            .execute(
                "UPDATE enrollment_tokens SET revoked_at = :at WHERE id = :id",
                named_params! { ":id": id, ":at": at.as_ms() },
            )
            .map(drop)
            .map_err(doing("revoke a token")),
        EnrollmentChange::TokenForgotten { id } => connection
            .execute("DELETE FROM token_uses WHERE token = :id", [id])
            .and_then(|_| connection.execute("DELETE FROM enrollment_tokens WHERE id = :id", [id]))
            .map(drop)
            .map_err(doing("forget a token")),
        EnrollmentChange::Pending(pending) => upsert_pending(connection, pending),
        EnrollmentChange::PendingGone { fingerprint } => connection
            .execute("DELETE FROM pending_keys WHERE fingerprint = :fingerprint", [fingerprint])
            .map(drop)
            .map_err(doing("forget a key that waits")),
    }
}

fn insert_token(connection: &Connection, token: &TokenRecord) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO enrollment_tokens
                (id, hash, role, uses, made_by, made_at, expires_at, revoked_at)
             VALUES (:id, :hash, :role, :uses, :made_by, :made_at, :expires_at, :revoked_at)",
            named_params! {
                ":id": token.id, ":hash": token.hash.as_bytes(), ":role": token.role,
                ":uses": token.uses, ":made_by": token.made_by.as_str(),
                ":made_at": token.made.as_ms(), ":expires_at": token.expires.as_ms(),
                ":revoked_at": token.revoked.map(Timestamp::as_ms),
            },
        )
        .map(drop)
        .map_err(doing("note a token"))
}

fn insert_use(connection: &Connection, used: &TokenUse) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO token_uses (token, fingerprint, name, used_at)
             VALUES (:token, :fingerprint, :name, :at)",
            named_params! {
                ":token": used.token, ":fingerprint": used.fingerprint,
                ":name": used.name.as_str(), ":at": used.at.as_ms(),
            },
        )
        .map(drop)
        .map_err(doing("note the use of a token"))
}

fn upsert_pending(connection: &Connection, pending: &PendingKey) -> Result<(), StoreError> {
    connection
        .execute(
            "INSERT INTO pending_keys (fingerprint, key, name, address, asked_at)
             VALUES (:fingerprint, :key, :name, :address, :at)
             ON CONFLICT (fingerprint) DO UPDATE
                SET name = :name, address = :address, asked_at = :at",
            named_params! {
                ":fingerprint": pending.fingerprint, ":key": pending.key,
                ":name": pending.name.as_ref().map(Name::as_str),
                ":address": pending.address, ":at": pending.asked.as_ms(),
            },
        )
        .map(drop)
        .map_err(doing("note a key that waits"))
}

impl Reader {
    /// Returns all tokens that are not forgotten, by id.
    ///
    /// # Errors
    /// [`StoreError::Sql`], and [`StoreError::Damaged`] when a row holds what was never written.
    pub fn tokens(&self) -> Result<Vec<TokenRecord>, StoreError> {
        self.all(
            "SELECT id, hash, role, uses, made_by, made_at, expires_at, revoked_at
             FROM enrollment_tokens ORDER BY id LIMIT -1",
            read_token,
        )
    }

    /// Returns which keys came in with tokens.
    ///
    /// # Errors
    /// As [`Reader::tokens`].
    pub fn token_uses(&self) -> Result<Vec<TokenUse>, StoreError> {
        self.all(
            "SELECT token, fingerprint, name, used_at FROM token_uses
             ORDER BY token, fingerprint LIMIT -1",
            read_use,
        )
    }

    /// Returns the keys that wait for an admin.
    ///
    /// # Errors
    /// As [`Reader::tokens`].
    pub fn pending_keys(&self) -> Result<Vec<PendingKey>, StoreError> {
        self.all(
            "SELECT fingerprint, key, name, address, asked_at FROM pending_keys
             ORDER BY fingerprint LIMIT -1",
            read_pending,
        )
    }

    fn all<T>(
        &self,
        sql: &str,
        read: impl Fn(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let reading = doing("read enrollments");
        let mut select = self.connection.prepare(sql).map_err(&reading)?;
        let mut rows = select.query([]).map_err(&reading)?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(&reading)? {
            all.push(read(row)?);
        }
        Ok(all)
    }
}

fn read_token(row: &Row<'_>) -> Result<TokenRecord, StoreError> {
    const TABLE: &str = "enrollment_tokens";
    let sql = doing("read a token");
    let revoked: Option<i64> = row.get(7).map_err(&sql)?;
    Ok(TokenRecord {
        id: row.get(0).map_err(&sql)?,
        hash: row::sha256(TABLE, &row.get::<_, Vec<u8>>(1).map_err(&sql)?)?,
        role: row.get(2).map_err(&sql)?,
        uses: row.get(3).map_err(&sql)?,
        made_by: row::parsed(TABLE, &row.get::<_, String>(4).map_err(&sql)?)?,
        made: Timestamp::from_ms(row.get(5).map_err(&sql)?),
        expires: Timestamp::from_ms(row.get(6).map_err(&sql)?),
        revoked: revoked.map(Timestamp::from_ms),
    })
}

fn read_use(row: &Row<'_>) -> Result<TokenUse, StoreError> {
    let sql = doing("read the use of a token");
    Ok(TokenUse {
        token: row.get(0).map_err(&sql)?,
        fingerprint: row.get(1).map_err(&sql)?,
        name: row::parsed("token_uses", &row.get::<_, String>(2).map_err(&sql)?)?,
        at: Timestamp::from_ms(row.get(3).map_err(&sql)?),
    })
}

fn read_pending(row: &Row<'_>) -> Result<PendingKey, StoreError> {
    let sql = doing("read a key that waits");
    let name: Option<String> = row.get(2).map_err(&sql)?;
    Ok(PendingKey {
        fingerprint: row.get(0).map_err(&sql)?,
        key: row.get(1).map_err(&sql)?,
        name: name.map(|name| row::parsed("pending_keys", &name)).transpose()?,
        address: row.get(3).map_err(&sql)?,
        asked: Timestamp::from_ms(row.get(4).map_err(&sql)?),
    })
}

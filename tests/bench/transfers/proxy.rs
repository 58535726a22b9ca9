//! A delay on loopback: what comes is passed on a while later, in both directions.
//!
//! It has no loss and no limit of bandwidth, and it keeps whatever is under way; so it shows what
//! windows and round trips cost, and nothing else.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};
use tokio::time::Instant;

/// How much is read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Starts a proxy to `target` with this round trip, and returns its address. It ends with the
/// process.
pub(crate) fn start(target: SocketAddr, round_trip: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let Ok(near) = near else { continue };
            // A target that is gone ends the connection.
            let Ok(far) = TcpStream::connect(target) else { continue };
            near.set_nodelay(true).unwrap();
            far.set_nodelay(true).unwrap();
            let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            pass(near, far, round_trip / 2);
            pass(far_too, near_too, round_trip / 2);
        }
    });
    address
}

/// Passes one direction on.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration) {
    let (queue, waiting) = mpsc::channel::<(Instant, Vec<u8>)>();
    thread::spawn(move || {
        loop {
            let mut piece = vec![0; PIECE_BYTES];
            let Ok(length @ 1..) = from.read(&mut piece) else { break };
            piece.truncate(length);
            if queue.send((Instant::now() + delay, piece)).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, piece) in waiting {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                break;
            }
        }
        // The other end may be gone already.
        to.shutdown(Shutdown::Write).ok();
    });
}

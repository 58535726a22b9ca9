//! A network that misbehaves: a proxy between agents and the coordinator, on loopback.
//!
//! Each way has its own rule, and rules hold for all connections, old and new. What is held up is
//! not lost: it passes when the rule is lifted, as it does through a real network whose partition
//! ends, because TCP sends again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    runtime::Runtime,
    sync::{mpsc, watch},
    time::Instant,
};

/// How much is read at a time.
const PIECE_BYTES: usize = 64 << 10;
/// How many pieces are under way on each way of a connection: 4 MiB.
const PIECES_MAX: usize = 64;
/// No stall is planned.
const NEVER: u64 = u64::MAX;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// From whoever connected.
    Up,
    /// To whoever connected.
    Down,
}

/// What happens to the bytes of one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// They pass.
    Pass,
    /// Each passes so much later.
    Delay(Duration),
    /// None passes, and nobody is told. On both ways this is a black hole: connections are
    /// accepted, and nothing comes of it.
    Stall,
}

/// A running proxy. Its connections end with it.
pub(crate) struct Proxy {
    port: u16,
    network: Arc<Network>,
    // Dropped last: its tasks end with it.
    _runtime: Runtime,
}

impl Proxy {
    /// Starts a proxy for a port of this machine.
    pub(crate) fn start(target: u16) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let network = Arc::new(Network {
            up: Line::default(),
            down: Line::default(),
            cuts: watch::Sender::new(0),
            connections: AtomicUsize::new(0),
        });
        runtime.spawn(accept(listener, target, Arc::clone(&network)));
        Self { port, network, _runtime: runtime }
    }

    /// Returns where it listens.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Sets what happens to one way.
    pub(crate) fn rule(&self, way: Way, rule: Rule) {
        self.network.line(way).rule.send_replace(rule);
    }

    /// Sets what happens to both ways.
    pub(crate) fn rules(&self, rule: Rule) {
        for way in [Way::Up, Way::Down] {
            self.rule(way, rule);
        }
    }

    /// Ends all connections at once.
    pub(crate) fn cut(&self) {
        self.network.cut();
    }

    /// Lets exactly so many further bytes pass on one way, and from then on none: the way stalls,
    /// as with [`Rule::Stall`], until a rule is set.
    pub(crate) fn stall_after(&self, way: Way, bytes: u64) {
        let line = self.network.line(way);
        line.stall_at.store(line.passed.load(Ordering::SeqCst) + bytes, Ordering::SeqCst);
    }

    /// Returns whether a planned stall is still to come.
    pub(crate) fn will_stall(&self, way: Way) -> bool {
        self.network.line(way).stall_at.load(Ordering::SeqCst) != NEVER
    }

    /// Returns how many bytes have passed on one way.
    pub(crate) fn passed(&self, way: Way) -> u64 {
        self.network.line(way).passed.load(Ordering::SeqCst)
    }

    /// Returns how many connections there are.
    pub(crate) fn connections(&self) -> usize {
        self.network.connections.load(Ordering::SeqCst)
    }
}

/// What all connections share.
struct Network {
    up: Line,
    down: Line,
    /// How often everything was cut.
    cuts: watch::Sender<u64>,
    connections: AtomicUsize,
}

/// One way of all connections.
struct Line {
    rule: watch::Sender<Rule>,
    passed: AtomicU64,
    stall_at: AtomicU64,
}

impl Default for Line {
    fn default() -> Self {
        Self {
            rule: watch::Sender::new(Rule::Pass),
            passed: AtomicU64::new(0),
            stall_at: AtomicU64::new(NEVER),
        }
    }
}

impl Line {
    /// Returns how many of so many bytes may pass before the planned stall, and counts them.
    fn let_pass(&self, bytes: usize) -> usize {
        let passed = self.passed.load(Ordering::SeqCst);
        let left = self.stall_at.load(Ordering::SeqCst).saturating_sub(passed);
        let count = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.passed.fetch_add(count as u64, Ordering::SeqCst);
        if count as u64 == left {
            self.rule.send_replace(Rule::Stall);
            self.stall_at.store(NEVER, Ordering::SeqCst);
        }
        count
    }
}

impl Network {
    const fn line(&self, way: Way) -> &Line {
        match way {
            Way::Up => &self.up,
            Way::Down => &self.down,
        }
    }

    fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

async fn accept(listener: TcpListener, target: u16, network: Arc<Network>) {
    loop {
        let (near, _) = listener.accept().await.unwrap();
        let network = Arc::clone(&network);
        tokio::spawn(async move {
            let mut cuts = network.cuts.subscribe();
            cuts.borrow_and_update();
            network.connections.fetch_add(1, Ordering::SeqCst);
            tokio::select! {
                () = connect(near, target, &network) => {}
                _ = cuts.changed() => {}
            }
            network.connections.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

/// Serves one connection until both ways have ended.
async fn connect(near: TcpStream, target: u16, network: &Network) {
    // A partition keeps new connections from the coordinator, too.
    until_passing(&network.up).await;
    let address = SocketAddr::from(([127, 0, 0, 1], target));
    // Nobody may be there: then the one who connected is told in the same way.
    let Ok(far) = TcpStream::connect(address).await else { return };
    near.set_nodelay(true).unwrap();
    far.set_nodelay(true).unwrap();
    let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
    tokio::join!(
        pass(from_near, to_far, network, Way::Up),
        pass(from_far, to_near, network, Way::Down)
    );
}

async fn until_passing(line: &Line) -> Rule {
    let mut rule = line.rule.subscribe();
    // The sender lives as long as the network.
    *rule.wait_for(|rule| *rule != Rule::Stall).await.unwrap()
}

/// Passes one way of a connection on.
async fn pass(from: OwnedReadHalf, to: OwnedWriteHalf, network: &Network, way: Way) {
    let (pieces, received) = mpsc::channel(PIECES_MAX);
    tokio::join!(receive(from, pieces), send(received, to, network, way));
}

async fn receive(mut from: OwnedReadHalf, pieces: mpsc::Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut piece = vec![0; PIECE_BYTES];
        // A connection that was reset ends here like one that was closed.
        let length = from.read(&mut piece).await.unwrap_or(0);
        piece.truncate(length);
        if length == 0 || pieces.send((Instant::now(), piece)).await.is_err() {
            return;
        }
    }
}

async fn send(
    mut pieces: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: OwnedWriteHalf,
    network: &Network,
    way: Way,
) {
    let line = network.line(way);
    while let Some((at, mut piece)) = pieces.recv().await {
        while !piece.is_empty() {
            if let Rule::Delay(delay) = until_passing(line).await {
                tokio::time::sleep_until(at + delay).await;
            }
            let rest = piece.split_off(line.let_pass(piece.len()));
            if to.write_all(&piece).await.is_err() {
                return;
            }
            piece = rest;
        }
    }
    until_passing(line).await;
    // The other side may have closed it already.
    to.shutdown().await.ok();
}

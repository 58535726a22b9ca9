//! The door against a stock `ssh` and against our own client, over real sockets on loopback.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stdout, reason = "a skipped test says why")]

#[path = "common/until.rs"]
mod until;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use steading::{
    ssh::{
        ChannelReader, ClientConfig, ConnectError, Connection, Counters, DoorConfig, DoorError,
        DoorLimits, GuardedWriter, Incoming, KeyPair, Monitor, OpenError, Request, RequestKind,
        Role, WriteError, connect, host_key, open,
    },
    telemetry::Clock,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use until::WAIT_MAX as LIMIT;

/// How soon what ends a session at once has ended it. Who is only silent is there for more than a
/// minute, and whoever has no key any more would stay for ever.
const AT_ONCE: Duration = Duration::from_secs(40);

/// A door with a service behind it, and a keydir.
struct World {
    dir: tempfile::TempDir,
    address: SocketAddr,
    host_public_key: String,
    monitor: Monitor,
    cancel: CancellationToken,
}

impl World {
    async fn open() -> Self {
        Self::with(DoorLimits::default()).await
    }

    async fn with(limits: DoorLimits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for role in Role::ALL {
            fs_err::create_dir_all(dir.path().join("keys").join(role.folder())).unwrap();
        }
        let cancel = CancellationToken::new();
        let config = DoorConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            host_key: dir.path().join("secrets/host_ed25519"),
            keydir: dir.path().join("keys"),
            limits,
        };
        let mut door = open(config, Clock::start(), cancel.clone()).await.unwrap();
        let known = format!("[127.0.0.1]:{} {}\n", door.address.port(), door.host_public_key);
        fs_err::write(dir.path().join("known_hosts"), known).unwrap();
        let world = Self {
            dir,
            address: door.address,
            host_public_key: door.host_public_key.clone(),
            monitor: door.monitor.clone(),
            cancel,
        };
        drop(tokio::spawn(async move {
            while let Some(request) = door.requests.recv().await {
                drop(tokio::spawn(serve(request)));
            }
        }));
        world
    }

    /// Makes a key of somebody whom the keydir does not know.
    fn stranger(&self, name: &str) -> KeyPair {
        host_key::load_or_create(&self.key_file(name)).unwrap()
    }

    /// Makes a key and lists it.
    async fn enter(&self, role: Role, name: &str) -> KeyPair {
        let key = self.stranger(name);
        self.list(role, name, &key.public_line()).await;
        key
    }

    async fn list(&self, role: Role, name: &str, line: &str) {
        let before = self.monitor.keydir().0.principals().len();
        fs_err::write(self.listed(role, name), line).unwrap();
        until("the key is known", || self.monitor.keydir().0.principals().len() > before).await;
    }

    fn listed(&self, role: Role, name: &str) -> PathBuf {
        self.dir.path().join("keys").join(role.folder()).join(format!("{name}.pub"))
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.dir.path().join("clients").join(name)
    }

    fn client_config(&self, identity: &KeyPair) -> ClientConfig {
        ClientConfig {
            address: self.address.to_string(),
            host_keys: vec![self.host_public_key.clone()],
            identity: identity.clone(),
            user: "steading".to_owned(),
        }
    }

    async fn connect(&self, identity: &KeyPair) -> Result<Connection, ConnectError> {
        connect(&self.client_config(identity), &CancellationToken::new()).await
    }

    /// A stock `ssh` as somebody.
    fn ssh(&self, name: &str, options: &[&str], command: &[&str]) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args(["-F", "none", "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes"])
            .args(["-o", "IdentityAgent=none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"])
            .arg("-o")
            .arg(format!("UserKnownHostsFile={}", self.dir.path().join("known_hosts").display()))
            .arg("-i")
            .arg(self.key_file(name))
            .args(["-p", &self.address.port().to_string()])
            .args(options)
            .arg("whoever@127.0.0.1")
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        ssh
    }

    fn counters(&self) -> Counters {
        self.monitor.counters()
    }

    async fn until_empty(&self) {
        until("nobody is connected", || {
            let now = self.counters();
            (now.sessions, now.unauthenticated, now.channels) == (0, 0, 0)
        })
        .await;
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What the coordinator would do, in small.
async fn serve(mut request: Request) {
    let command = match &request.kind {
        RequestKind::Exec(line) => String::from_utf8(line.clone()).unwrap(),
        RequestKind::Subsystem(name) => format!("subsystem {name}"),
        RequestKind::Shell => "shell".to_owned(),
    };
    let mut words = command.split(' ');
    // A write that fails ends the request: its client is gone.
    let done = match words.next().unwrap() {
        "whoami" => {
            let principal = &request.principal;
            let terminal = request.pty.map_or(String::new(), |size| format!(" {}", size.columns));
            let text = format!("{} {}{terminal}\n", principal.name, principal.role);
            request.output.write(text.into()).await
        }
        "env" => {
            let text = request.env.iter().map(|(name, value)| format!("{name}={value}\n"));
            request.output.write(text.collect::<String>().into()).await
        }
        "complain" => request.output.write_stderr("no such thing\n".into()).await,
        "echo" | "subsystem" => echo(&mut request).await,
        "hash" => hash(&mut request).await,
        "flood" => flood(&request).await,
        "duplex" => duplex(&mut request).await,
        "hold" => {
            request.gone.cancelled().await;
            Ok(())
        }
        "shell" => request.output.write("welcome\n".into()).await,
        _ => Ok(()),
    };
    let status = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    if done.is_ok() && request.output.exit(status).await.is_err() {
        // Nobody is left to be told.
    }
}

async fn echo(request: &mut Request) -> Result<(), WriteError> {
    loop {
        match request.input.next().await {
            Incoming::Data(bytes) => request.output.write(bytes).await?,
            Incoming::Eof => return Ok(()),
            Incoming::Lost => return Err(WriteError::Gone),
            Incoming::Stderr(_) | Incoming::Exited(_) => {}
        }
    }
}

async fn hash(request: &mut Request) -> Result<(), WriteError> {
    let hash = hash_of(&mut request.input).await?;
    request.output.write(hash.into()).await
}

async fn hash_of(input: &mut ChannelReader) -> Result<String, WriteError> {
    let mut hasher = Sha256::new();
    loop {
        match input.next().await {
            Incoming::Data(bytes) => hasher.update(&bytes),
            Incoming::Eof => return Ok(hex(&hasher.finalize())),
            Incoming::Lost => return Err(WriteError::Gone),
            Incoming::Stderr(_) | Incoming::Exited(_) => {}
        }
    }
}

/// Gives much and takes much at the same time; tells the hash of what it took in the end.
async fn duplex(request: &mut Request) -> Result<(), WriteError> {
    let output = request.output.clone();
    let giving = tokio::spawn(async move { output.write(large().into()).await });
    let hash = hash_of(&mut request.input).await?;
    giving.await.unwrap()?;
    request.output.write_stderr(hash.into()).await
}

async fn flood(request: &Request) -> Result<(), WriteError> {
    let piece = Bytes::from(vec![7; 256 << 10]);
    loop {
        request.output.write(piece.clone()).await?;
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Waits for a condition, with a limit.
async fn until(what: &str, condition: impl Fn() -> bool) {
    until::until(what, async || condition()).await;
}

async fn within<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> T {
    timeout(limit, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Returns whether `ssh` is there, or prints that the test was skipped.
fn have_ssh() -> bool {
    let have = std::process::Command::new("ssh").arg("-V").output().is_ok();
    if !have {
        println!("skipped: there is no ssh on this machine");
    }
    have
}

async fn fed(mut child: Child, input: Vec<u8>) -> Output {
    let mut stdin = child.stdin.take().unwrap();
    let feeding = tokio::spawn(async move {
        stdin.write_all(&input).await.ok();
        drop(stdin);
    });
    let output = within("ssh ends", LIMIT, child.wait_with_output()).await.unwrap();
    feeding.await.unwrap();
    output
}

async fn run(mut ssh: Command, input: &[u8]) -> Output {
    fed(ssh.spawn().unwrap(), input.to_vec()).await
}

/// 64 MiB in which every shift or loss would show.
fn large() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = (64 << 20) / 8;
    let mut bytes = Vec::with_capacity(words * 8);
    for _ in 0..words {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_gets_output_errors_and_status() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Submitter, "ada").await;

    let echoed = run(world.ssh("ada", &[], &["echo", "7"]), b"hello\n").await;
    assert_eq!(echoed.stdout, b"hello\n", "{echoed:?}");
    assert_eq!(echoed.status.code(), Some(7));

    let complained = run(world.ssh("ada", &[], &["complain", "1"]), b"").await;
    assert_eq!(complained.stderr, b"no such thing\n");
    assert_eq!(complained.status.code(), Some(1));

    let whoami = run(world.ssh("ada", &[], &["whoami"]), b"").await;
    assert_eq!(whoami.stdout, b"ada submitter\n");

    let shell = run(world.ssh("ada", &["-T"], &[]), b"").await;
    assert_eq!(shell.stdout, b"welcome\n");

    let subsystem = run(world.ssh("ada", &["-s"], &["echo"]), b"hello").await;
    assert_eq!(subsystem.stdout, b"hello");
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_line_ends_and_its_interrupt_ends_the_command() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Viewer, "ada").await;
    let output = run(world.ssh("ada", &["-tt"], &["whoami"]), b"").await;
    // Without a local terminal ssh says that it has 0 columns.
    assert_eq!(output.stdout, b"ada viewer 0\r\n", "{output:?}");
    let ended = run(world.ssh("ada", &["-tt"], &["echo"]), b"typed\x04").await;
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");

    let mut holding = world.ssh("ada", &["-tt"], &["hold"]).spawn().unwrap();
    let mut keyboard = holding.stdin.take().unwrap();
    keyboard.write_all(b"\x03").await.unwrap();
    within("ssh ends", LIMIT, holding.wait()).await.unwrap();
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_variables_that_mean_something_arrive() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Submitter, "ada").await;
    let set = "SetEnv=STEADING_PRIORITY=5 LD_PRELOAD=evil STEADING_TAGS=a=b PATH=/";
    let output = run(world.ssh("ada", &["-o", set], &["env"]), b"").await;
    assert_eq!(output.stdout, b"STEADING_PRIORITY=5\nSTEADING_TAGS=a=b\n", "{output:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_forwarded() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Admin, "ada").await;
    let strict = ["-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1"];
    let remote = run(world.ssh("ada", &strict, &["whoami"]), b"").await;
    assert_eq!(remote.status.code(), Some(255), "{remote:?}");
    let target = world.address.to_string();
    let direct = run(world.ssh("ada", &["-W", &target], &[]), b"").await;
    assert_eq!(direct.status.code(), Some(255), "{direct:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rsa_keys_are_believed_with_sha2_and_not_with_sha1() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    fs_err::create_dir_all(world.dir.path().join("clients")).unwrap();
    let made = Command::new("ssh-keygen")
        .args(["-q", "-t", "rsa", "-b", "2048", "-N", "", "-f"])
        .arg(world.key_file("rsa"))
        .status()
        .await;
    assert!(made.unwrap().success());
    let line = fs_err::read_to_string(world.key_file("rsa.pub")).unwrap();
    world.list(Role::Viewer, "ada", &line).await;

    let sha2 = run(world.ssh("rsa", &[], &["whoami"]), b"").await;
    assert_eq!(sha2.stdout, b"ada viewer\n", "{sha2:?}");
    let sha1_only = ["-o", "PubkeyAcceptedAlgorithms=ssh-rsa"];
    let sha1 = run(world.ssh("rsa", &sha1_only, &["whoami"]), b"").await;
    assert_eq!(sha1.status.code(), Some(255), "{sha1:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_keys_are_refused() {
    let world = World::open().await;
    world.enter(Role::Agent, "honeycomb").await;
    let stranger = world.stranger("mallory");
    let refused = world.connect(&stranger).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused:?}");
    if have_ssh() {
        let output = run(world.ssh("mallory", &[], &["whoami"]), b"").await;
        assert_eq!(output.status.code(), Some(255), "{output:?}");
    }
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_gets_a_second_role_is_refused_and_reported() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    fs_err::write(world.listed(Role::Admin, "ada"), key.public_line()).unwrap();
    within("the session ends", LIMIT, connection.lost().cancelled()).await;
    let refused = world.connect(&key).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused { .. }), "{refused:?}");
    assert_eq!(world.monitor.keydir().1.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_key_ends_its_sessions_and_no_others() {
    let world = World::open().await;
    let leaving = world.enter(Role::Agent, "leaving").await;
    let staying = world.enter(Role::Agent, "staying").await;
    let left = world.connect(&leaving).await.unwrap();
    let stayed = world.connect(&staying).await.unwrap();
    let (mut input, _output) = left.subsystem("echo").await.unwrap();

    fs_err::remove_file(world.listed(Role::Agent, "leaving")).unwrap();
    within("the session ends", AT_ONCE, left.lost().cancelled()).await;
    assert_eq!(input.next().await, Incoming::Lost);
    until("one session is left", || world.counters().sessions == 1).await;
    assert!(!stayed.lost().is_cancelled());
    assert!(matches!(world.connect(&leaving).await, Err(ConnectError::Refused { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_role_ends_the_session() {
    let world = World::open().await;
    let key = world.enter(Role::Viewer, "ada").await;
    let connection = world.connect(&key).await.unwrap();
    fs_err::rename(world.listed(Role::Viewer, "ada"), world.listed(Role::Admin, "ada")).unwrap();
    within("the session ends", AT_ONCE, connection.lost().cancelled()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn noise_closes_its_own_connection_only() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let long = vec![b'x'; 64 << 10];
    let noises: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"SSH-1.5-old\r\n",
        b"SSH-2.0-Steading_9\r\n\xff\xff\xff\xff\x00\x00\x00\x00garbage",
        b"SSH-2.0-x\r\n\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        &long,
    ];
    for noise in noises {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(noise).await.ok();
        stream.shutdown().await.ok();
        let mut answer = Vec::new();
        within("noise is hung up on", LIMIT, stream.read_to_end(&mut answer)).await.ok();
    }
    world.until_empty().await;
    world.connect(&key).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_authenticate_in_time_is_cut() {
    let limits = DoorLimits { grace: Duration::from_secs(2), ..DoorLimits::default() };
    let world = World::with(limits).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    // On a busy machine, even who makes haste may need a second try.
    let connecting = async {
        loop {
            if let Ok(connection) = world.connect(&key).await {
                return connection;
            }
        }
    };
    let connection = within("one gets in", LIMIT, connecting).await;
    for introduction in ["", "SSH-2.0-slow\r\n"] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(introduction.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within("the silent are cut", LIMIT, stream.read_to_end(&mut answer)).await.ok();
    }
    until("none is left", || world.counters().unauthenticated == 0).await;
    assert!(!connection.lost().is_cancelled());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_unauthenticated_are_turned_away_until_some_leave() {
    // Nobody is cut before this test is through with them.
    let limits =
        DoorLimits { unauthenticated_per_address: 2, grace: 2 * LIMIT, ..DoorLimits::default() };
    let world = World::with(limits).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let first = TcpStream::connect(world.address).await.unwrap();
    let _second = TcpStream::connect(world.address).await.unwrap();
    until("two are waiting", || world.counters().unauthenticated == 2).await;
    assert!(world.connect(&key).await.is_err());
    assert_eq!(world.counters().turned_away, 1);
    drop(first);
    until("one has left", || world.counters().unauthenticated == 1).await;
    world.connect(&key).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_four_channels_at_once() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let mut channels = Vec::new();
    for _ in 0..4 {
        channels.push(connection.exec("hold").await.unwrap());
    }
    assert!(connection.exec("hold").await.is_err());
    assert_eq!(world.counters().channels, 4);
    let (_input, output) = channels.pop().unwrap();
    output.close().await.unwrap();
    until("three are left", || world.counters().channels == 3).await;
    assert!(connection.exec("hold").await.is_ok());
    connection.close().await;
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subsystem_carries_bytes_both_ways() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let (mut input, output) = connection.subsystem("steading-control").await.unwrap();
    for text in ["one", "two", "three"] {
        output.write(text.into()).await.unwrap();
        assert_eq!(input.next().await, Incoming::Data(text.into()));
    }
    output.end_data().await.unwrap();
    assert_eq!(output.write("late".into()).await, Err(WriteError::Ended));
    assert_eq!(input.next().await, Incoming::Exited(0));
    assert_eq!(input.next().await, Incoming::Eof);
    assert_eq!(input.next().await, Incoming::Eof);
    connection.close().await;
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_key_that_is_not_pinned_is_not_believed() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let other = KeyPair::from_seed([1; 32]).public_line();
    let cancel = CancellationToken::new();
    let mut config = world.client_config(&key);
    config.host_keys = vec![other.clone()];
    let error = connect(&config, &cancel).await.unwrap_err();
    assert!(matches!(error, ConnectError::HostKeyMismatch { .. }), "{error:?}");
    config.host_keys = vec!["ssh-ed25519 nonsense".to_owned()];
    assert!(matches!(connect(&config, &cancel).await, Err(ConnectError::PinnedKey(_))));
    config.host_keys = Vec::new();
    assert!(matches!(connect(&config, &cancel).await, Err(ConnectError::NothingPinned(_))));
    // While the key is being changed, both are pinned.
    config.host_keys = vec![other, format!("{} comment", world.host_public_key)];
    connect(&config, &cancel).await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_uploads_and_downloads_every_bit() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Submitter, "ada").await;
    let sent = large();
    let hash = hex(&Sha256::digest(&sent));
    // With new keys every few megabytes, and without.
    for options in [&[][..], &["-o", "RekeyLimit=4M"]] {
        let hashed = run(world.ssh("ada", options, &["hash"]), &sent).await;
        assert_eq!(hashed.stdout, hash.as_bytes());
        let both = run(world.ssh("ada", options, &["duplex"]), &sent).await;
        assert!(both.stdout == sent, "{} bytes of {}", both.stdout.len(), sent.len());
        assert_eq!(both.stderr, hash.as_bytes());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_uploads_and_downloads_every_bit() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let sent = Bytes::from(large());

    let hash = hex(&Sha256::digest(&sent));
    for (command, given) in [("hash", Bytes::from(hash.clone())), ("duplex", sent.clone())] {
        let (input, output) = opened(&connection, command).await;
        let sending = tokio::spawn({
            let sent = sent.clone();
            async move {
                output.write(sent).await.unwrap();
                output.end_data().await.unwrap();
                output
            }
        });
        let (received, errors) = within("everything comes back", LIMIT, all_of(input)).await;
        drop(sending.await.unwrap());
        assert!(received == given, "{command}: {} of {} bytes", received.len(), given.len());
        assert!(command == "hash" || errors == hash.as_bytes());
    }
}

/// Runs a command, however long the answer takes behind all that was sent before.
async fn opened(connection: &Connection, command: &str) -> (ChannelReader, GuardedWriter) {
    let opening = async {
        loop {
            match connection.exec(command).await {
                Ok(channel) => return channel,
                Err(OpenError::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    };
    within("the command is taken", LIMIT, opening).await
}

/// Reads a command's output and errors to their end.
async fn all_of(mut input: ChannelReader) -> (Vec<u8>, Vec<u8>) {
    let (mut received, mut errors) = (Vec::new(), Vec::new());
    loop {
        match input.next().await {
            Incoming::Data(bytes) => received.extend_from_slice(&bytes),
            Incoming::Stderr(bytes) => errors.extend_from_slice(&bytes),
            Incoming::Exited(status) => assert_eq!(status, 0),
            Incoming::Eof => return (received, errors),
            Incoming::Lost => panic!("lost after {} bytes", received.len()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_stock_client_leaves_nothing() {
    if !have_ssh() {
        return;
    }
    let world = World::open().await;
    world.enter(Role::Submitter, "ada").await;
    for command in ["hold", "echo", "flood"] {
        let mut child = world.ssh("ada", &[], &[command]).spawn().unwrap();
        until("it has a channel", || world.counters().channels == 1).await;
        child.kill().await.unwrap();
        world.until_empty().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_channel_is_given_up_and_its_connection_goes_on() {
    let limits = DoorLimits { read_progress: Duration::from_millis(300), ..DoorLimits::default() };
    let world = World::with(limits).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let (_unread, stuck) = connection.exec("hold").await.unwrap();
    let piece = Bytes::from(vec![0; 1 << 20]);
    let error = within("the channel is closed", LIMIT, async {
        loop {
            if let Err(error) = stuck.write(piece.clone()).await {
                return error;
            }
        }
    });
    assert_eq!(error.await, WriteError::Gone);
    let (mut input, output) = connection.subsystem("echo").await.unwrap();
    output.write("still there".into()).await.unwrap();
    assert_eq!(input.next().await, Incoming::Data("still there".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_before_an_unread_channel_leaves_nothing() {
    let limits = DoorLimits { read_progress: Duration::from_secs(1), ..DoorLimits::default() };
    let world = World::with(limits).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let (_unread, stuck) = connection.exec("hold").await.unwrap();
    let piece = Bytes::from(vec![0; 1 << 20]);
    for _ in 0..24 {
        // More than both queues hold, so that the connection's task on the other side waits.
        if timeout(Duration::from_millis(200), stuck.write(piece.clone())).await.is_err() {
            break;
        }
    }
    drop(connection);
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_takes_nothing_stops_only_its_writer() {
    let limits = DoorLimits { write_progress: Duration::from_millis(300), ..DoorLimits::default() };
    let world = World::with(limits).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let connection = world.connect(&key).await.unwrap();
    let (_never_read, _output) = connection.exec("flood").await.unwrap();
    // The client keeps the connection but reads nothing: after its queues and the network's are
    // full, the server's writer gives up and its channel ends.
    until("the channel is given up", || world.counters().channels == 0).await;
    connection.close().await;
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writing_client_learns_at_once_that_the_server_stops() {
    let world = World::open().await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    for command in ["hash", "hold"] {
        let world = if command == "hash" { &world } else { &World::open().await };
        if command == "hold" {
            world.list(Role::Agent, "honeycomb", &key.public_line()).await;
        }
        let connection = world.connect(&key).await.unwrap();
        let (mut input, output) = connection.exec(command).await.unwrap();
        let piece = Bytes::from(vec![0; 1 << 20]);
        let writing = tokio::spawn(async move {
            loop {
                if let Err(error) = output.write(piece.clone()).await {
                    return error;
                }
            }
        });
        until("it has a channel", || world.counters().channels == 1).await;
        world.cancel.cancel();
        let error = within("the writer fails", AT_ONCE, writing).await.unwrap();
        assert_eq!(error, WriteError::Gone);
        assert_eq!(input.next().await, Incoming::Lost);
        world.until_empty().await;
        let gone = world.connect(&key).await.unwrap_err();
        assert!(matches!(gone, ConnectError::Unreachable { .. }), "{gone:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_can_be_cut() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::from_seed([3; 32]);
    fs_err::create_dir_all(dir.path().join("keys/agents")).unwrap();
    fs_err::write(dir.path().join("keys/agents/a.pub"), key.public_line()).unwrap();
    let mut door =
        open(door_config(dir.path(), "127.0.0.1:0"), Clock::start(), token()).await.unwrap();
    let config = ClientConfig {
        address: door.address.to_string(),
        host_keys: vec![door.host_public_key.clone()],
        identity: key,
        user: String::new(),
    };
    let connection = connect(&config, &token()).await.unwrap();
    let (opened, request) = tokio::join!(connection.exec("anything"), door.requests.recv());
    let request = request.unwrap();
    assert!(opened.is_ok());
    assert!(door.monitor.cut(request.session));
    within("the client notices", LIMIT, connection.lost().cancelled()).await;
    within("the request notices", LIMIT, request.gone.cancelled()).await;
    until("the session is forgotten", || !door.monitor.cut(request.session)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_refused_when_nobody_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::from_seed([3; 32]);
    fs_err::create_dir_all(dir.path().join("keys/viewers")).unwrap();
    fs_err::write(dir.path().join("keys/viewers/a.pub"), key.public_line()).unwrap();
    let mut config = door_config(dir.path(), "127.0.0.1:0");
    config.limits.requests_waiting = 1;
    config.limits.request_wait = Duration::from_millis(50);
    let door = open(config, Clock::start(), token()).await.unwrap();
    let config = ClientConfig {
        address: door.address.to_string(),
        host_keys: vec![door.host_public_key.clone()],
        identity: key,
        user: String::new(),
    };
    let connection = connect(&config, &token()).await.unwrap();
    let _waiting = connection.exec("first").await.unwrap();
    assert!(connection.exec("second").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named() {
    let world = World::open().await;
    let dir = tempfile::tempdir().unwrap();
    let config = door_config(dir.path(), &world.address.to_string());
    let error = open(config, Clock::start(), token()).await.unwrap_err();
    assert!(matches!(error, DoorError::Listen { .. }));
    assert!(error.to_string().contains("something listens there already"), "{error}");
}

fn door_config(dir: &Path, listen: &str) -> DoorConfig {
    DoorConfig {
        listen: listen.parse().unwrap(),
        host_key: dir.join("host_key/key"),
        keydir: dir.join("keys"),
        limits: DoorLimits::default(),
    }
}

fn token() -> CancellationToken {
    CancellationToken::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_connections_of_one_principal_are_refused_with_words_and_cost_nobody_else() {
    if !have_ssh() {
        return;
    }
    let world = World::with(DoorLimits { sessions_per_person: 2, ..DoorLimits::default() }).await;
    let key = world.enter(Role::Viewer, "vera").await;
    world.enter(Role::Viewer, "ada").await;
    let mut held = vec![world.connect(&key).await.unwrap(), world.connect(&key).await.unwrap()];
    let output = run(world.ssh("vera", &[], &["whoami"]), b"").await;
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.contains("too many connections of vera"), "{words}");
    until("it has left", || world.counters().sessions == 2).await;
    held.push(world.connect(&key).await.unwrap());
    held.push(world.connect(&key).await.unwrap());
    // Twice as many do not even get in.
    assert!(matches!(world.connect(&key).await, Err(ConnectError::Refused { .. })));
    assert!(run(world.ssh("ada", &[], &["whoami"]), b"").await.status.success());
    assert!(world.counters().refused >= 2);
    for connection in held {
        connection.close().await;
    }
    world.until_empty().await;
    assert!(run(world.ssh("vera", &[], &["whoami"]), b"").await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_commands_of_one_principal_are_refused_with_words_for_a_while() {
    if !have_ssh() {
        return;
    }
    let limits =
        DoorLimits { commands_at_once: 2, commands_per_second: 1, ..DoorLimits::default() };
    let world = World::with(limits).await;
    world.enter(Role::Viewer, "vera").await;
    let whoami = || run(world.ssh("vera", &[], &["whoami"]), b"");
    for _ in 0..2 {
        assert_eq!(whoami().await.status.code(), Some(0));
    }
    // Four at once: where starting them takes seconds, some more are needed.
    let refused = async {
        loop {
            let outputs = tokio::join!(whoami(), whoami(), whoami(), whoami());
            let outputs = [outputs.0, outputs.1, outputs.2, outputs.3];
            if let Some(refused) = outputs.into_iter().find(|out| out.status.code() != Some(0)) {
                return refused;
            }
        }
    };
    let refused = timeout(LIMIT, refused).await.unwrap();
    assert_eq!(refused.status.code(), Some(75));
    let words = String::from_utf8(refused.stderr).unwrap();
    assert!(words.contains("sends too many commands, 1 per second are taken"), "{words}");
    let again =
        async { while !run(world.ssh("vera", &[], &["whoami"]), b"").await.status.success() {} };
    within("commands are taken again", LIMIT, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_of_one_principal_are_limited_over_all_its_connections() {
    let world =
        World::with(DoorLimits { channels_per_principal: 3, ..DoorLimits::default() }).await;
    let key = world.enter(Role::Agent, "honeycomb").await;
    let other = world.enter(Role::Agent, "amber").await;
    let (one, two) = (world.connect(&key).await.unwrap(), world.connect(&key).await.unwrap());
    let mut open = vec![one.subsystem("echo").await.unwrap(), one.subsystem("echo").await.unwrap()];
    open.push(two.subsystem("echo").await.unwrap());
    assert!(two.subsystem("echo").await.is_err());
    world.connect(&other).await.unwrap().subsystem("echo").await.unwrap();
    drop(open.pop());
    let again = async { while two.subsystem("echo").await.is_err() {} };
    within("a closed channel makes room", LIMIT, again).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dripped_introduction_is_cut_in_time_and_many_of_them_keep_nobody_else_out() {
    if !have_ssh() {
        return;
    }
    // Long enough for somebody honest on a busy machine.
    let limits = DoorLimits { grace: Duration::from_secs(8), ..DoorLimits::default() };
    let world = World::with(limits).await;
    world.enter(Role::Viewer, "vera").await;
    let drip = |address: SocketAddr| async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let cut = async {
            while stream.write_all(b"x").await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        within("the slow are cut", LIMIT, cut).await;
    };
    let dripping: Vec<_> = (0..200).map(|_| tokio::spawn(drip(world.address))).collect();
    until("most were turned away", || world.counters().turned_away > 100).await;
    assert!(world.counters().unauthenticated <= 17);
    // From another address somebody gets in all the same.
    let honest = run(world.ssh("vera", &["-b", "127.0.0.2"], &["whoami"]), b"").await;
    assert!(honest.status.success(), "{honest:?}");
    for one in dripping {
        one.await.unwrap();
    }
    world.until_empty().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_a_removed_key_had_sent_is_heard_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let cancel = token();
    let config = door_config(dir.path(), "127.0.0.1:0");
    fs_err::create_dir_all(dir.path().join("keys/agents")).unwrap();
    let mut door = open(config, Clock::start(), cancel.clone()).await.unwrap();
    let key = host_key::load_or_create(&dir.path().join("identity")).unwrap();
    let listed = dir.path().join("keys/agents/honeycomb.pub");
    fs_err::write(&listed, key.public_line()).unwrap();
    until("the key is known", || !door.monitor.keydir().0.principals().is_empty()).await;
    let config = ClientConfig {
        address: door.address.to_string(),
        host_keys: vec![door.host_public_key.clone()],
        identity: key,
        user: "steading".to_owned(),
    };
    let connection = connect(&config, &token()).await.unwrap();
    let (_input, output) = connection.subsystem("upload").await.unwrap();
    let mut request = within("the request comes", LIMIT, door.requests.recv()).await.unwrap();
    let uploading =
        tokio::spawn(
            async move { while output.write(Bytes::from(vec![7; 64 << 10])).await.is_ok() {} },
        );
    for _ in 0..10 {
        assert!(matches!(request.input.next().await, Incoming::Data(_)));
    }
    // Megabytes wait to be read by now, and must not be.
    fs_err::remove_file(&listed).unwrap();
    within("its session ends", AT_ONCE, request.gone.cancelled()).await;
    assert_eq!(request.input.next().await, Incoming::Lost);
    within("it learns of it", LIMIT, connection.lost().cancelled()).await;
    within("its upload ends", LIMIT, uploading).await.unwrap();
    until("nothing is left of it", || door.monitor.counters().sessions == 0).await;
    cancel.cancel();
}

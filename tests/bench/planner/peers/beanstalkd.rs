//! beanstalkd with a synced log.

use super::{Rate, Server};
use crate::{planner::timed, wait};
use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
};

/// What is put into the queue: a name like that of a derivation.
const BODY: &str = "/nix/store/00000000000000000000000000000000-package-1.0.drv";

/// Reserves and deletes `count` entries with so many clients.
pub(crate) fn beanstalkd(scratch: &Path, count: usize, clients: usize) -> Result<Rate, String> {
    let dir = tempfile::tempdir_in(scratch).unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new("beanstalkd");
    command.args(["-l", "127.0.0.1", "-p", &address.port().to_string(), "-f0", "-b"]);
    command.arg(dir.path()).stdin(Stdio::null()).stderr(Stdio::null());
    let mut server = Server::start(&mut command)?;
    wait::until("beanstalkd listens", || {
        assert_eq!(server.0.try_wait().unwrap(), None, "beanstalkd does not run");
        TcpStream::connect(address).is_ok()
    });
    let each = count / clients;
    let mut client = Client::connect(address);
    for _ in 0..each * clients {
        client.say(&format!("put 0 0 600 {}\r\n{BODY}\r\n", BODY.len()));
        assert!(client.line().starts_with("INSERTED"));
    }
    let (used, seconds) = timed(|| {
        thread::scope(|scope| {
            let take = |_| scope.spawn(move || take(address, each));
            let threads: Vec<_> = (0..clients).map(take).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum::<usize>()
        })
    });
    assert_eq!(used, each * clients, "everything was reserved once");
    Ok(Rate { per_s: super::super::number(used) / seconds, clients })
}

/// Reserves and deletes, one at a time. Returns how many.
fn take(address: SocketAddr, count: usize) -> usize {
    let mut client = Client::connect(address);
    for _ in 0..count {
        client.say("reserve\r\n");
        let reserved = client.line();
        let id = reserved.strip_prefix("RESERVED ").unwrap().split(' ').next().unwrap();
        let mut body = [0; BODY.len() + 2];
        client.0.read_exact(&mut body).unwrap();
        client.say(&format!("delete {id}\r\n"));
        assert_eq!(client.line(), "DELETED");
    }
    count
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

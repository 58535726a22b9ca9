//! What SSH alone costs: bytes from our client to our door, thrown away there.

use super::{
    Bench,
    measure::{Measured, Sample, alternate, cpu_of_this_process, timed},
    payload::{self, Kind},
    report::{Bar, Section, compare},
    sshd::Sshd,
};
use bytes::Bytes;
use steading::{
    protocol::{BULK_SUBSYSTEM, bulk::CHUNK_BYTES_MAX},
    ssh::{
        self, ChannelReader, ClientConfig, DoorConfig, DoorLimits, GuardedWriter, Incoming,
        host_key,
    },
    telemetry::Clock,
};
use tokio_util::sync::CancellationToken;

/// Measures our two ends in this process against `sftp put` and `ssh host cat`.
pub(crate) fn measure(bench: &Bench) -> Section {
    let sshd = Sshd::start(&bench.scratch, None);
    let file = payload::write(&bench.scratch, Kind::Random, bench.options.bytes);
    let content = Bytes::from(fs_err::read(&file).unwrap());
    let cancel = CancellationToken::new();
    let (client, received) = bench.runtime.block_on(open_door(bench, &cancel));
    let mut measured: Vec<Measured<'_>> = vec![("ours", {
        let (content, received) = (content.clone(), &received);
        Box::new(move |_| send(bench, &client, &content, received))
    })];
    if let Ok(sshd) = &sshd {
        measured.push(("sftp put /dev/null", Box::new(|_| sshd.put_into_nothing(&file))));
        let cat = || {
            let mut ssh = sshd.ssh("cat > /dev/null");
            ssh.stdin(fs_err::File::open(&file).unwrap().into_parts().0);
            sshd.measure(&mut ssh)
        };
        measured.push(("ssh cat", Box::new(move |_| cat())));
    }
    let series = alternate(bench.options.rounds, measured);
    cancel.cancel();
    let peer = |at: usize| sshd.as_ref().map_err(String::as_str).map(|_| &series[at]);
    let what = format!("{} MiB into nothing", bench.options.bytes >> 20);
    let bars = (Bar::Faster(1.5), Bar::Share(0.6));
    let mut rows = compare(&what, &series[0], "sftp put", peer(1), bars);
    rows.extend(compare(&what, &series[0], "ssh cat", peer(2), (Bar::None, Bar::None)));
    let about = format!(
        "Our client and our door in one process, in pieces of {} KiB, connecting included; nothing \
         is hashed or stored. {} rounds.",
        CHUNK_BYTES_MAX >> 10,
        bench.options.rounds
    );
    Section { part: "sink", about, rows }
}

type Received = tokio::sync::Mutex<tokio::sync::mpsc::Receiver<u64>>;

/// Opens a door that counts what comes on each channel.
async fn open_door(bench: &Bench, cancel: &CancellationToken) -> (ClientConfig, Received) {
    let (keys, identity) = (bench.scratch.join("sink-keys"), bench.scratch.join("sink-identity"));
    let identity = host_key::load_or_create(&identity).unwrap();
    fs_err::create_dir_all(keys.join("agents")).unwrap();
    fs_err::write(keys.join("agents/amber.pub"), identity.public_line()).unwrap();
    let config = DoorConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        host_key: bench.scratch.join("sink-host-key"),
        keydir: keys,
        limits: DoorLimits::default(),
    };
    let mut door = ssh::open(config, Clock::start(), cancel.clone()).await.unwrap();
    let client = ClientConfig {
        address: door.address.to_string(),
        host_keys: vec![door.host_public_key.clone()],
        identity,
        user: "amber".to_owned(),
    };
    let (counts, received) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Some(request) = door.requests.recv().await {
            tokio::spawn(count(request.input, request.output, counts.clone()));
        }
    });
    (client, received.into())
}

async fn count(
    mut input: ChannelReader,
    output: GuardedWriter,
    counts: tokio::sync::mpsc::Sender<u64>,
) {
    let mut total = 0;
    while let Incoming::Data(bytes) = input.next().await {
        total += bytes.len() as u64;
    }
    counts.send(total).await.unwrap();
    output.close().await.ok();
}

fn send(bench: &Bench, client: &ClientConfig, content: &Bytes, received: &Received) -> Sample {
    let before = cpu_of_this_process();
    let (count, wall_s) = timed(|| {
        bench.runtime.block_on(async {
            let connection = ssh::connect(client, &CancellationToken::new()).await.unwrap();
            let (_reader, writer) = connection.subsystem(BULK_SUBSYSTEM).await.unwrap();
            for start in (0..content.len()).step_by(CHUNK_BYTES_MAX) {
                let end = content.len().min(start + CHUNK_BYTES_MAX);
                writer.write(content.slice(start..end)).await.unwrap();
            }
            writer.end_data().await.unwrap();
            received.lock().await.recv().await.unwrap()
        })
    });
    assert_eq!(count, content.len() as u64, "not everything arrived");
    Sample { wall_s, cpu_s: Some(cpu_of_this_process() - before) }
}

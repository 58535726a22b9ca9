//! Bulk channels of an agent: derivations and inputs down, nars up; one exchange at a time, or
//! many small offers.

use super::{
    Coordinator, below, eager,
    engine_thread::EngineGone,
    exports,
    files::{OpenError, open_nar},
    hygiene::SweepError,
    inputs::{InputsError, inputs_of},
    pressure::Activity,
    probe, upload,
};
use crate::{
    core::{
        engine::{Ask, Told},
        hash::Sha256,
        id::{AttemptId, Name},
        path_info::PathInfo,
        store_path::StorePath,
    },
    depot::DepotError,
    protocol::{
        bulk::{
            BulkFromAgent, BulkToAgent, CHUNK_BYTES_MAX, OFFERS_AHEAD_MAX, PATHS_PER_PAGE,
            REFERENCES_PER_PAGE, RefusalCode, SIGN_INTERVAL, STALL_MAX,
        },
        data::data_of,
        frame::{self, Decoder, FrameError},
    },
    ssh::{ChannelReader, GuardedWriter, Incoming, Request, WriteError},
    store::{Reader, StoreError},
    telemetry,
};
use bytes::Bytes;
use std::{
    collections::VecDeque,
    io::{Read as _, Seek as _, SeekFrom},
    pin::pin,
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, Interval, MissedTickBehavior, interval_at, timeout_at},
};

/// How many chunks are read ahead of what the agent takes.
const CHUNKS_AHEAD: usize = 8;
/// How many bytes of small offers may be unanswered on one channel, their descriptions included.
const AHEAD_BYTES_MAX: usize = 8 << 20;
/// How many batches of small offers of one channel are worked on at a time: one is verified while
/// another one waits for the disk. More would be smaller ones.
const BATCHES_MAX: usize = 2;

/// Why a bulk channel ended before its agent closed it.
#[derive(Debug, thiserror::Error)]
pub enum BulkEnd {
    /// Bytes that are no frame, or no message, or a message out of turn.
    #[error("the agent does not speak the protocol")]
    Protocol(#[from] FrameError),
    /// A message that does not belong here.
    #[error("the agent sent a message out of turn")]
    OutOfTurn,
    /// The connection was lost inside an exchange.
    #[error("the connection was lost inside an exchange")]
    Lost,
    /// Nothing came inside a transfer for as long as that is allowed.
    #[error("the agent sent nothing for {} s inside a transfer", STALL_MAX.as_secs())]
    Stalled,
    /// Writing failed.
    #[error("writing failed")]
    Write(#[from] WriteError),
    /// The coordinator is stopping.
    #[error(transparent)]
    Stopping(#[from] EngineGone),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The depot failed.
    #[error(transparent)]
    Depot(#[from] DepotError),
    /// Room could not be made for what would be received.
    #[error("what is left of earlier uploads could not be removed")]
    Sweep(#[from] SweepError),
    /// A file of the depot could not be read.
    #[error("a file of the depot could not be read")]
    Read(#[source] std::io::Error),
}

/// A bulk channel: frames instead of bytes.
pub(super) struct BulkChannel {
    activity: Activity,
    input: ChannelReader,
    output: GuardedWriter,
    decoder: Decoder,
    turn: Turn,
    /// The length of the last message, in bytes.
    frame_bytes: usize,
    /// How many bytes came since this was last set to zero.
    came: u64,
    /// Since when nothing came that was waited for.
    quiet_since: Instant,
}

/// Where a bulk channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// Nothing is owed by either side.
    Between,
    /// An exchange is under way.
    Inside,
}

impl BulkChannel {
    fn new(input: ChannelReader, output: &GuardedWriter, activity: Activity) -> Self {
        Self {
            activity,
            input,
            output: output.with_deadline(STALL_MAX),
            decoder: Decoder::default(),
            turn: Turn::Between,
            frame_bytes: 0,
            came: 0,
            quiet_since: Instant::now(),
        }
    }

    /// Returns the next message, however long it takes to come; `None` when the agent closed the
    /// channel between exchanges. Giving up the returned future loses nothing.
    pub(super) async fn next(&mut self) -> Result<Option<BulkFromAgent>, BulkEnd> {
        loop {
            if let Some(message) = self.decoded()? {
                return Ok(Some(message));
            }
            let incoming = self.input.next().await;
            if !self.take(incoming)? {
                return Ok(None);
            }
        }
    }

    /// Returns the next message of a transfer, of which something must come all the time. Giving
    /// up the returned future loses nothing, nor does it give the agent more time.
    pub(super) async fn next_of_transfer(&mut self) -> Result<BulkFromAgent, BulkEnd> {
        loop {
            if let Some(message) = self.decoded()? {
                return Ok(message);
            }
            let incoming = timeout_at(self.quiet_since + STALL_MAX, self.input.next());
            let incoming = incoming.await.map_err(|_| BulkEnd::Stalled)?;
            if !self.take(incoming)? {
                return Err(BulkEnd::Lost);
            }
        }
    }

    /// Begins a transfer, or goes on with one that this side has held up.
    pub(super) fn wait_from_now(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// Begins to count what comes.
    pub(super) const fn count_from_now(&mut self) {
        self.came = 0;
    }

    /// Returns how many bytes came since counting began.
    pub(super) const fn came(&self) -> u64 {
        self.came
    }

    fn decoded(&mut self) -> Result<Option<BulkFromAgent>, BulkEnd> {
        let Some(body) = self.decoder.next_frame()? else { return Ok(None) };
        self.frame_bytes = body.len();
        Ok(Some(match data_of(&body) {
            Some(bytes) => BulkFromAgent::Data { bytes },
            None => frame::decode(&body)?,
        }))
    }

    /// Takes in what came. Returns whether more can come.
    fn take(&mut self, incoming: Incoming) -> Result<bool, BulkEnd> {
        match incoming {
            Incoming::Data(bytes) => {
                self.came = self.came.saturating_add(bytes.len() as u64);
                self.activity.receive(bytes.len() as u64);
                self.wait_from_now();
                self.decoder.feed(&bytes);
                Ok(true)
            }
            Incoming::Stderr(_) | Incoming::Exited(_) => Ok(true),
            Incoming::Eof => {
                self.decoder.finish()?;
                Ok(false)
            }
            // Agents close connections that they need no more without ceremony.
            Incoming::Lost if self.turn == Turn::Between && self.decoder.is_empty() => Ok(false),
            Incoming::Lost => Err(BulkEnd::Lost),
        }
    }

    /// Runs something that may take long, and gives signs of life meanwhile. It is given up when
    /// the agent goes away or says something.
    pub(super) async fn meanwhile<T>(
        &mut self,
        signs: &mut Signs,
        work: impl Future<Output = T>,
    ) -> Result<T, BulkEnd> {
        let mut work = pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return Ok(done),
                () = signs.due() => self.say(&BulkToAgent::Wait {}).await?,
                message = self.next() => return Err(match message? {
                    Some(_) => BulkEnd::OutOfTurn,
                    None => BulkEnd::Lost,
                }),
            }
        }
    }

    pub(super) async fn say(&self, message: &BulkToAgent) -> Result<(), BulkEnd> {
        Ok(self.output.write(frame::encode(message)?).await?)
    }

    /// Says many things at once.
    pub(super) async fn say_all(&self, messages: &[BulkToAgent]) -> Result<(), BulkEnd> {
        Ok(self.output.write(frame::encode_all(messages)?).await?)
    }

    pub(super) async fn refuse(&self, code: RefusalCode, reason: String) -> Result<(), BulkEnd> {
        self.say(&BulkToAgent::Refused { code, reason }).await
    }
}

/// When the next sign of life is due, if the agent wants any.
pub(super) struct Signs(Option<Interval>);

impl Signs {
    pub(super) fn new(wanted: bool) -> Self {
        Self(wanted.then(|| {
            let mut ticks = interval_at(Instant::now() + SIGN_INTERVAL, SIGN_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            ticks
        }))
    }

    pub(super) const fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Returns when it is time for one; never, when none are wanted.
    pub(super) async fn due(&mut self) {
        match &mut self.0 {
            Some(ticks) => drop(ticks.tick().await),
            None => std::future::pending().await,
        }
    }
}

/// Serves a bulk channel until it ends.
pub async fn serve(coordinator: Coordinator, request: Request) {
    let agent = request.principal.name.clone();
    let Request { input, output, session, .. } = request;
    let mut channel = BulkChannel::new(input, &output, coordinator.activity.clone());
    match exchanges(&coordinator, &agent, &mut channel).await {
        // The agent may be gone already.
        Ok(()) => drop(channel.output.close().await),
        Err(end) => {
            tracing::info!(%agent, reason = telemetry::chain(&end), "bulk channel ended");
            if matches!(end, BulkEnd::Stalled | BulkEnd::Write(WriteError::Stalled)) {
                // Closing the channel would be one more thing that the peer does not take.
                let was_live = coordinator.monitor.cut(session);
                tracing::debug!(%agent, was_live, "stalled bulk connection cut");
            }
        }
    }
}

/// Small offers of a channel: those that came, and those that are worked on.
struct Ahead {
    /// Not begun yet.
    waiting: Vec<eager::Offer>,
    waiting_bytes: usize,
    /// In the order in which they are answered.
    batches: VecDeque<Batch>,
}

/// Offers that are worked on together.
struct Batch {
    work: JoinHandle<Result<Vec<BulkToAgent>, BulkEnd>>,
    offers: usize,
    bytes: usize,
}

impl Ahead {
    const fn new() -> Self {
        Self { waiting: Vec::new(), waiting_bytes: 0, batches: VecDeque::new() }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.batches.is_empty()
    }

    /// Tells whether more may come.
    fn has_room(&self) -> bool {
        let most = usize::try_from(OFFERS_AHEAD_MAX).unwrap_or(1);
        let offers = self.batches.iter().map(|batch| batch.offers).sum::<usize>();
        let bytes = self.batches.iter().map(|batch| batch.bytes).sum::<usize>();
        offers + self.waiting.len() < most && bytes + self.waiting_bytes < AHEAD_BYTES_MAX
    }

    fn may_begin(&self) -> bool {
        !self.waiting.is_empty() && self.batches.len() < BATCHES_MAX
    }

    /// Begins with all that wait.
    fn begin(&mut self, coordinator: &Coordinator, agent: &Name) {
        let offers = std::mem::take(&mut self.waiting);
        let (number, bytes) = (offers.len(), std::mem::take(&mut self.waiting_bytes));
        let work = tokio::spawn(eager::receive(coordinator.clone(), agent.clone(), offers));
        self.batches.push_back(Batch { work, offers: number, bytes });
    }

    /// Returns the answers to the offers that were begun first. Giving up the returned future loses
    /// nothing.
    async fn answers(&mut self) -> Result<Vec<BulkToAgent>, BulkEnd> {
        let Some(first) = self.batches.front_mut() else { return std::future::pending().await };
        let answers = (&mut first.work).await.expect("receiving an offer does not panic");
        self.batches.pop_front();
        answers
    }
}

async fn exchanges(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
) -> Result<(), BulkEnd> {
    let mut ahead = Ahead::new();
    let mut signs = Signs::new(false);
    loop {
        let message = tokio::select! {
            biased;
            answers = ahead.answers() => {
                if ahead.is_empty() {
                    channel.turn = Turn::Between;
                    signs = Signs::new(false);
                }
                channel.say_all(&answers?).await?;
                continue;
            }
            () = signs.due() => {
                channel.say(&BulkToAgent::Wait {}).await?;
                continue;
            }
            message = channel.next(), if ahead.has_room() => message?,
            // Nothing more has come so far.
            () = std::future::ready(()), if ahead.may_begin() => {
                ahead.begin(coordinator, agent);
                continue;
            }
        };
        let Some(message) = message else { return Ok(()) };
        channel.turn = Turn::Inside;
        let _counted = coordinator.activity.transfer();
        match message {
            BulkFromAgent::Offer { attempt, outputs, eager: files, signs: wanted }
                if !files.is_empty() =>
            {
                if ahead.is_empty() {
                    signs = Signs::new(wanted);
                }
                ahead.waiting_bytes += channel.frame_bytes;
                ahead.waiting.push(eager::Offer { attempt, outputs, files });
            }
            _ if !ahead.is_empty() => return Err(BulkEnd::OutOfTurn),
            message => {
                exchange(coordinator, agent, channel, message).await?;
                channel.turn = Turn::Between;
            }
        }
    }
}

/// Goes through one exchange.
async fn exchange(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &mut BulkChannel,
    message: BulkFromAgent,
) -> Result<(), BulkEnd> {
    match message {
        BulkFromAgent::Prepare { attempt } => prepare(coordinator, agent, channel, attempt).await,
        BulkFromAgent::Fetch { path, offset, file_hash, export } => {
            let wanted = Wanted { path, offset, file_hash, export };
            fetch(coordinator, channel, wanted).await
        }
        BulkFromAgent::Texts { paths } => below::texts(coordinator, channel, paths).await,
        BulkFromAgent::About { paths } => below::about(coordinator, channel, paths).await,
        BulkFromAgent::Probe { store_dir } => probe::answer(coordinator, channel, store_dir).await,
        BulkFromAgent::Offer { attempt, outputs, signs, .. } => {
            if let Some(reason) = coordinator.pressure.reason() {
                return channel.refuse(RefusalCode::TryLater, reason).await;
            }
            upload::receive(coordinator, agent, channel, attempt, outputs, Signs::new(signs)).await
        }
        BulkFromAgent::Data { .. } | BulkFromAgent::End { .. } => Err(BulkEnd::OutOfTurn),
    }
}

/// Answers with an attempt's derivation and inputs.
async fn prepare(
    coordinator: &Coordinator,
    agent: &Name,
    channel: &BulkChannel,
    attempt: AttemptId,
) -> Result<(), BulkEnd> {
    let derivation = match coordinator.engine.ask(Ask::Attempt(attempt)).await? {
        Told::Attempt(Some((holder, derivation))) if holder == *agent => derivation,
        _ => {
            let reason = format!("attempt {attempt} is not yours any more");
            return channel.refuse(RefusalCode::Stale, reason).await;
        }
    };
    let inputs = coordinator.readers.read(move |reader| inputs_of(reader, &derivation)).await;
    let inputs = match inputs {
        Ok(inputs) => inputs,
        Err(InputsError::Store(error)) => return Err(error.into()),
        Err(error) => {
            return channel.refuse(RefusalCode::NotHeld, telemetry::chain(&error)).await;
        }
    };
    coordinator.care.uses.note(inputs.held.iter().map(|info| info.path.hash()));
    let text = Bytes::from(inputs.text);
    for start in (0..text.len()).step_by(CHUNK_BYTES_MAX) {
        let bytes = text.slice(start..text.len().min(start + CHUNK_BYTES_MAX));
        channel.say(&BulkToAgent::Derivation { bytes }).await?;
    }
    say_inputs(coordinator, channel, inputs.held, &inputs.not_held).await
}

/// Says what is known of paths, to the end of the answer.
pub(super) async fn say_inputs(
    coordinator: &Coordinator,
    channel: &BulkChannel,
    held: Vec<PathInfo>,
    not_held: &[StorePath],
) -> Result<(), BulkEnd> {
    let held = held.into_iter().map(|info| coordinator.depot.signed(info)).collect();
    for held in pages(held) {
        channel.say(&BulkToAgent::Inputs { held, not_held: Vec::new() }).await?;
    }
    for not_held in not_held.chunks(PATHS_PER_PAGE) {
        let not_held = not_held.to_vec();
        channel.say(&BulkToAgent::Inputs { held: Vec::new(), not_held }).await?;
    }
    channel.say(&BulkToAgent::End {}).await
}

/// Splits records so that each part fits a frame.
fn pages(infos: Vec<PathInfo>) -> Vec<Vec<PathInfo>> {
    let mut pages: Vec<Vec<PathInfo>> = Vec::new();
    let mut references = 0;
    for info in infos {
        let own = info.references.len();
        let fits = |page: &Vec<PathInfo>| {
            page.len() < PATHS_PER_PAGE && references + own <= REFERENCES_PER_PAGE
        };
        if let Some(page) = pages.last_mut().filter(|page| fits(page)) {
            references += own;
            page.push(info);
        } else {
            references = own;
            pages.push(vec![info]);
        }
    }
    pages
}

/// What an agent fetches.
struct Wanted {
    path: StorePath,
    offset: u64,
    /// The file that the agent has the beginning of.
    file_hash: Option<Sha256>,
    /// Whether the export is to be signed.
    export: bool,
}

/// Answers with the file of a nar, from an offset on.
async fn fetch(
    coordinator: &Coordinator,
    channel: &mut BulkChannel,
    wanted: Wanted,
) -> Result<(), BulkEnd> {
    let Wanted { path, offset, file_hash: begun, export } = wanted;
    let hash = path.hash();
    let record = coordinator.readers.read(move |reader| reader.nar(hash)).await?;
    let Some(record) = record else {
        return channel.refuse(RefusalCode::NotHeld, format!("{path} is not held here")).await;
    };
    let (depot, file_hash) = (coordinator.depot.clone(), record.file_hash);
    let open = move |reader: &Reader| open_nar(reader, &depot, &file_hash);
    let mut file = match coordinator.readers.read(open).await {
        Ok(file) => file,
        Err(OpenError::Depot(DepotError::NotHeld(_))) => {
            let reason = format!("the file of {path} is lost; run ‘check’ on the coordinator");
            tracing::error!(%path, "the file of a nar is lost");
            return channel.refuse(RefusalCode::NotHeld, reason).await;
        }
        Err(OpenError::Depot(error)) => return Err(error.into()),
        Err(OpenError::Store(error)) => return Err(error.into()),
    };
    let compression = record.compression().word().to_owned();
    let mut info = coordinator.depot.signed(record.info);
    if export {
        let signing = exports::sign(coordinator, info.clone(), file_hash);
        match channel.meanwhile(&mut Signs::new(true), signing).await? {
            Ok(signature) => info.signatures.extend(signature),
            Err(error) => {
                let reason = format!("the export of {path} cannot be signed: {error}");
                tracing::error!(%path, error = telemetry::chain(&error), "export not signed");
                return channel.refuse(RefusalCode::NotHeld, reason).await;
            }
        }
    }
    channel
        .say(&BulkToAgent::Nar {
            compression,
            info,
            file_bytes: record.file_bytes,
            file_hash: Some(file_hash),
        })
        .await?;
    // What the agent has is of another file: it sees that, and expects this one from its beginning.
    let offset = if begun.is_none_or(|begun| begun == file_hash) { offset } else { 0 };
    let (sender, mut chunks) = mpsc::channel::<std::io::Result<Bytes>>(CHUNKS_AHEAD);
    let reading = tokio::task::spawn_blocking(move || -> std::io::Result<()> {
        file.seek(SeekFrom::Start(offset))?;
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES_MAX);
            let length = (&mut file).take(CHUNK_BYTES_MAX as u64).read_to_end(&mut chunk)?;
            // The agent may have gone.
            if length == 0 || sender.blocking_send(Ok(chunk.into())).is_err() {
                return Ok(());
            }
        }
    });
    while let Some(chunk) = chunks.recv().await {
        let bytes = chunk.map_err(BulkEnd::Read)?;
        channel.say(&BulkToAgent::Data { bytes }).await?;
    }
    reading.await.expect("reading a file does not panic").map_err(BulkEnd::Read)?;
    channel.say(&BulkToAgent::End {}).await
}

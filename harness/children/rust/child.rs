//! Reference child of joulewatch's process protocol (../../PROTOCOL.md), in Rust without crates.
//!   build:  rustc --edition 2021 -O -C target-cpu=native -o child child.rs
//!   run:    joulewatch profile --runtime process --network matmul --option command=./child
//! It multiplies a batch of vectors of 256 numbers by 256 x 256 weights. Inputs are small multiples of 1/8, weights of
//! 1/16, so f32 sums are exact: every correct child computes the same check, in any language and order of sums.
//! Requests are flat objects on one line; this child reads them without a JSON library.
use std::io::{BufRead, Write};
use std::time::Instant;

const WIDTH: usize = 256;
const LARGEST_BATCH: usize = 1 << 16;
const CHECK_BATCH: usize = 8;
const REFERENCE: f64 = 3049.8203125; // sum of relu(x w)[b, j] * (j % 7 + 1), computed in integers

/// Code and text; codes: unsupported_batch, out_of_memory, bad_configuration, unknown_op, failed.
type Failure = (&'static str, String);

#[repr(C)]
struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}
extern "C" {
    fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of the harness. (An Instant is the same clock but hides its value.)
fn now_ns() -> i64 {
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    unsafe { clock_gettime(1, &mut time) };
    time.seconds * 1_000_000_000 + time.nanoseconds
}

/// The text after "key": in a flat request, a string without its quotes.
fn field<'a>(request: &'a str, key: &str) -> &'a str {
    let mark = format!("\"{}\":", key);
    let at = match request.find(&mark) {
        Some(at) => at,
        None => return "",
    };
    let rest = request[at + mark.len()..].trim_start();
    match rest.strip_prefix('"') {
        Some(text) => text.split('"').next().unwrap_or(""),
        None => rest.split(|c| c == ',' || c == '}' || c == ' ').next().unwrap_or(""),
    }
}
fn number(request: &str, key: &str) -> usize {
    field(request, key).parse().unwrap_or(0)
}

#[derive(Default)]
struct Matmul {
    weights: Vec<f32>,
    host_in: Vec<f32>,
    input: Vec<f32>,
    output: Vec<f32>,
    host_out: Vec<f32>,
}

impl Matmul {
    fn load(&mut self, precision: &str) -> Result<(), Failure> {
        if precision != "native" && precision != "fp32" {
            return Err(("bad_configuration", format!("this child computes in fp32, not in {}", precision)));
        }
        let weight = |n: usize| ((n / WIDTH * 13 + n % WIDTH * 5) % 19) as f32 / 16.0 - 9.0 / 16.0;
        self.weights = (0..WIDTH * WIDTH).map(weight).collect();
        Ok(())
    }

    fn prepare(&mut self, batch: usize) -> Result<(), Failure> {
        if batch > LARGEST_BATCH {
            return Err(("unsupported_batch", format!("at most {}", LARGEST_BATCH)));
        }
        for buffer in [&mut self.host_in, &mut self.input, &mut self.output, &mut self.host_out] {
            buffer.clear();
            buffer.try_reserve_exact(batch * WIDTH).map_err(|error| ("out_of_memory", error.to_string()))?;
            buffer.resize(batch * WIDTH, 0.0);
        }
        for (n, x) in self.host_in.iter_mut().enumerate() {
            *x = ((n / WIDTH * 31 + n % WIDTH * 7) % 17) as f32 / 8.0 - 1.0;
        }
        Ok(())
    }

    /// Runs one batch; returns the nanoseconds of its three phases, if they are timed.
    fn batch(&mut self, timed: bool) -> [u128; 3] {
        let now = || timed.then(Instant::now);
        let start = now();
        self.input.copy_from_slice(&self.host_in);
        let copied = now();
        for (x, y) in self.input.chunks_exact(WIDTH).zip(self.output.chunks_exact_mut(WIDTH)) {
            y.fill(0.0);
            for (x, weights) in x.iter().zip(self.weights.chunks_exact(WIDTH)) {
                y.iter_mut().zip(weights).for_each(|(y, w)| *y += x * w);
            }
            y.iter_mut().for_each(|y| *y = y.max(0.0));
        }
        let executed = now();
        self.host_out.copy_from_slice(&self.output);
        let span = |from: Option<Instant>, to: Option<Instant>| from.zip(to).map_or(0, |(a, b)| (b - a).as_nanos());
        [span(start, copied), span(copied, executed), span(executed, now())]
    }
}

fn run(network: &mut Matmul, request: &str) -> String {
    let batches = number(request, "batches");
    let stamped = field(request, "batch_ends") == "true";
    let timed = field(request, "phases") == "true";
    let mut ends = Vec::with_capacity(if stamped { batches } else { 0 });
    let mut totals = [0; 3];
    let t0 = now_ns();
    for _ in 0..batches {
        let spans = network.batch(timed);
        (0..3).for_each(|i| totals[i] += spans[i]);
        if stamped {
            ends.push((now_ns() - t0).to_string());
        }
    }
    let t1 = now_ns();
    let ends = ends.join(",");
    let mut text = format!(r#","batches":{},"t0_ns":{},"t1_ns":{},"batch_ends_ns":[{}]"#, batches, t0, t1, ends);
    if timed {
        let span = |i: usize| format!(r#"{{"count":{},"ns":{}}}"#, batches, totals[i]);
        text += &format!(r#","phases":{{"copy_in":{},"execute":{},"copy_out":{}}}"#, span(0), span(1), span(2));
    }
    text
}

fn answer_to(network: &mut Matmul, request: &str) -> Result<String, Failure> {
    match field(request, "op") {
        "describe" => Ok(concat!(
            r#","protocol":1,"runtime":"rust","precision":"fp32","device":"cpu","threads":1,"#,
            r#""offers":["check"],"details":{"width":256}"#
        )
        .into()),
        "load" => network.load(field(request, "precision")).map(|_| String::new()),
        "prepare" => network.prepare(number(request, "batch")).map(|_| String::new()),
        "run" => Ok(run(network, request)),
        "ping" | "close" => Ok(String::new()),
        "check" => {
            network.prepare(CHECK_BATCH)?;
            network.batch(false);
            let each = network.host_out.iter().enumerate();
            let sum: f64 = each.map(|(n, y)| f64::from(*y) * (n % WIDTH % 7 + 1) as f64).sum();
            let value = format!(r#"{{"value":{},"reference":{},"tolerance":1e-6}}"#, sum, REFERENCE);
            Ok(format!(r#","values":{{"weighted_sum":{}}}"#, value))
        }
        op => Err(("unknown_op", format!("no operation {}", op))),
    }
}

fn main() {
    let mut network = Matmul::default();
    for request in std::io::stdin().lock().lines() {
        let request = match request {
            Ok(request) => request,
            Err(_) => return, // stdin ends when joulewatch exits
        };
        let outcome = match answer_to(&mut network, &request) {
            Ok(text) => format!("true{}", text),
            Err((code, text)) => format!(r#"false,"error":{{"code":"{}","text":"{}"}}"#, code, text),
        };
        let mut stdout = std::io::stdout();
        let _ = writeln!(stdout, r#"{{"id":{},"ok":{}}}"#, field(&request, "id"), outcome);
        let _ = stdout.flush();
        if field(&request, "op") == "close" {
            return;
        }
    }
}

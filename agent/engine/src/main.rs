//! The engine's process. See the library for what it does and exit codes below for how it ends.

mod socket;

use std::{
    env,
    error::Error,
    num::NonZero,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use cocoon_engine::ServeError;

/// An agent that takes nothing for this long is gone or stuck.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);

const HELP: &str = "\
cocoon-engine runs a language model with libtorch. It is not started by hand: Cocoon's agent starts it with one
end of a socketpair as file descriptor 3 and tells it there which model to load and what to answer.

OMP_NUM_THREADS sets how many threads compute at most (default: one for each processor); a small model uses
fewer, because it gains nothing by more.

Exit codes: 0 the agent closed the connection; 1 the connection failed; 2 not started as described above;
3 the model cannot be loaded (the agent is told why); 4 the agent broke the protocol.";

fn main() -> ExitCode {
    let started = Instant::now();
    if env::args_os().len() > 1 {
        println!("{HELP}");
        return ExitCode::from(if env::args_os().nth(1).is_some_and(|first| first == "--help") {
            0
        } else {
            2
        });
    }
    let stream = match socket::from_agent() {
        Ok(stream) => stream,
        Err(error) => {
            eprintln!("cocoon-engine: there is no socket at descriptor 3: {error}\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    use_threads();
    let served = stream
        .set_write_timeout(Some(WRITE_DEADLINE))
        .and_then(|()| stream.try_clone())
        .map_err(|error| ServeError::Connection(cocoon_protocol::FrameError::Io(error)))
        .and_then(|reader| cocoon_engine::serve(reader, &mut &stream, started));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(match error {
                ServeError::Connection(_) => 1,
                ServeError::Load(_) => 3,
                ServeError::Protocol(_) => 4,
            })
        }
    }
}

/// The most that libtorch may use: more threads than processors are slower than one. Loading lowers it.
fn use_threads() {
    let wished = env::var("OMP_NUM_THREADS")
        .ok()
        .and_then(|text| text.parse::<NonZero<u16>>().ok());
    let threads = wished.map_or_else(
        || thread::available_parallelism().map_or(1, |count| count.get().min(1 << 10) as i32),
        |count| count.get().into(),
    );
    tch::set_num_threads(threads);
    tch::set_num_interop_threads(1);
}

/// None of these errors can hold content: they are about files, shapes and the socket.
fn report(error: &ServeError) {
    eprint!("cocoon-engine: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
}

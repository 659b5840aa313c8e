//! A service on this machine that says what a test wants, well or badly.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What comes back for one path.
#[derive(Clone)]
pub(crate) enum Answer {
    /// Status 200 with these header fields and this body.
    Page(Vec<(&'static str, String)>, Vec<u8>),
    /// No body.
    Status(u16),
    /// Somewhere else.
    Redirect(String),
    /// The header promises more than comes.
    Truncated,
    /// A body without length that does not end.
    Endless,
    /// A byte now and then, each in time and all together not.
    Drips,
    /// Not HTTP.
    Noise,
}

pub(crate) type Routes = BTreeMap<String, Answer>;

pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Paths that are not in `routes` are 404.
    pub(crate) fn start(routes: Routes) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let over = Arc::new(AtomicBool::new(false));
        let (log, stop) = (Arc::clone(&asked), Arc::clone(&over));
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                serve(connection.unwrap(), &routes, &log, &stop);
            }
        });
        Self {
            address,
            asked,
            over,
            thread: Some(thread),
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The paths so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread; if that fails, it is not waiting.
        let _ = TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn serve(mut connection: TcpStream, routes: &Routes, log: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let mut lines = BufReader::new(connection.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else { return };
    while lines
        .next()
        .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
    {}
    let path = first.split(' ').nth(1).unwrap().to_owned();
    let answer = routes.get(&path).cloned().unwrap_or(Answer::Status(404));
    log.lock().unwrap().push(path);
    let written = write(&mut connection, &answer, stop);
    // Whoever refuses an answer hangs up, and then it cannot be written.
    drop(written);
}

fn write(connection: &mut TcpStream, answer: &Answer, stop: &AtomicBool) -> std::io::Result<()> {
    match answer {
        Answer::Page(headers, body) => {
            let mut head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n",
                body.len()
            );
            for (name, value) in headers {
                head += &format!("{name}: {value}\r\n");
            }
            connection.write_all((head + "\r\n").as_bytes())?;
            connection.write_all(body)
        }
        Answer::Status(status) => {
            write!(
                connection,
                "HTTP/1.1 {status} Said\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )
        }
        Answer::Redirect(to) => {
            write!(
                connection,
                "HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
            )
        }
        Answer::Truncated => connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n3082"),
        Answer::Endless => {
            connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            while !stop.load(Ordering::SeqCst) {
                connection.write_all(&[b'0'; 4096])?;
            }
            Ok(())
        }
        Answer::Drips => {
            connection.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            // Without a deadline it arrives whole after 20 s, and is something else than a list.
            for _ in 0..1000 {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                connection.write_all(b"0")?;
                thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        }
        Answer::Noise => connection.write_all(b"SSH-2.0-OpenSSH_9.9\r\n"),
    }
}

//! A line to a database that is cut in the middle of a commit.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// On which side of the server's work the line is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// The server never hears of it.
    Before,
    /// The server has done it, and its answer is lost.
    After,
}

/// What the line does.
#[derive(Clone, Copy, Debug)]
enum Plan {
    /// It carries everything.
    Carry,
    /// It is cut once, at the next message that holds this.
    Once(Cut, &'static [u8]),
    /// It is cut at each so many-th commit, before and after it in turn.
    Every(usize),
}

/// A TCP proxy in front of a server.
pub struct CuttingProxy {
    address: SocketAddr,
    shears: Arc<Shears>,
}

struct Shears {
    plan: Mutex<Plan>,
    /// Commits seen, and cuts made.
    counts: Mutex<(usize, usize)>,
}

impl CuttingProxy {
    /// A line to the server at this address.
    pub async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let shears = Arc::new(Shears { plan: Mutex::new(Plan::Carry), counts: Mutex::default() });
        let held = Arc::clone(&shears);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let shears = Arc::clone(&held);
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        carry(client, server, &shears).await;
                    }
                });
            }
        });
        Self { address, shears }
    }

    /// The address of a database, through this line.
    pub fn url(&self, of: &str) -> String {
        let mut url = url::Url::parse(of).expect("an address");
        url.set_port(Some(self.address.port())).expect("it has a port");
        url.into()
    }

    /// Cuts at the next message from the client that holds these bytes.
    pub fn cut_once(&self, cut: Cut, at: &'static [u8]) {
        *self.shears.plan.lock().expect("no panic") = Plan::Once(cut, at);
    }

    /// Cuts at each so many-th commit; at none where it is 0.
    pub fn cut_every(&self, commits: usize) {
        *self.shears.plan.lock().expect("no panic") = if commits == 0 { Plan::Carry } else { Plan::Every(commits) };
    }

    /// How often it was cut.
    pub fn cuts(&self) -> usize {
        self.shears.counts.lock().expect("no panic").1
    }
}

impl Shears {
    fn cut_at(&self, message: &[u8]) -> Option<Cut> {
        let holds = |bytes: &[u8]| bytes.is_empty() || message.windows(bytes.len()).any(|window| window == bytes);
        let mut plan = self.plan.lock().expect("no panic");
        let (commits, cuts) = &mut *self.counts.lock().expect("no panic");
        let cut = match *plan {
            Plan::Once(cut, at) if holds(at) => {
                *plan = Plan::Carry;
                cut
            }
            Plan::Every(number) if holds(b"COMMIT") => {
                *commits += 1;
                if *commits % number != 0 {
                    return None;
                }
                if *cuts % 2 == 0 { Cut::After } else { Cut::Before }
            }
            _ => return None,
        };
        *cuts += 1;
        Some(cut)
    }
}

/// Both ends are closed when this returns.
async fn carry(client: TcpStream, server: TcpStream, shears: &Shears) {
    let (mut client_says, mut to_client) = client.into_split();
    let (mut server_says, mut to_server) = server.into_split();
    let (mut up, mut down) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client_says.read(&mut up) => {
                let Ok(read @ 1..) = read else { return };
                let cut = shears.cut_at(&up[..read]);
                if cut == Some(Cut::Before) || to_server.write_all(&up[..read]).await.is_err() {
                    return;
                }
                if cut == Some(Cut::After) {
                    let _answer_that_nobody_hears = server_says.read(&mut down).await;
                    return;
                }
            }
            read = server_says.read(&mut down) => {
                let Ok(read @ 1..) = read else { return };
                if to_client.write_all(&down[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

//! What nodes tell each other for PHP: where its gateways are, and whether it has workers.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::keys::Channel;
use super::redis::{Command, Mark};
use super::{Cluster, Unavailable};
use crate::id::LanAddress;

/// The field beside the gateways: a worker has been connected to some node.
const WORKERS: &str = "workers";

/// What the nodes know together of PHP.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Php {
    /// Where gateways are that others tell of and that can be connected to, as `ip:port`: nodes, and PHP's own that have
    /// registered at one.
    pub others: Vec<String>,
    /// Those that are told of by nobody who hears anything: a node that has crashed, or loses its connection just now.
    pub silent: Vec<String>,
    /// A worker has been connected to some node.
    pub had_workers: bool,
    /// The connection is another one than before, or Redis has lost what this node had said: others may not have said theirs again yet.
    pub is_in_doubt: bool,
}

/// What this node had said when it last looked, and over which connection.
#[derive(Debug, Default)]
pub(super) struct LastLook {
    said: Vec<String>,
    connection: Option<Mark>,
}

impl Cluster {
    /// Looks, and makes known what this node has to say: its own gateways, and that it has had workers.
    ///
    /// A gateway is there as long as a node that tells of it hears something: a process that has crashed does not.
    pub async fn php(&self, ours: &[String], had_workers: bool) -> Result<Php, Unavailable> {
        let (keys, connection) = (&self.shared.keys, self.shared.link.get()?);
        let run = self.shared.identity().run.clone();
        let looks = [keys.php(), keys.runs(), keys.lan()].map(Command::hgetall);
        let mut found = Vec::new();
        for reply in connection.pipeline(looks.into()).await? {
            found.push(reply?.pairs());
        }
        let [lan, runs, php] = [found.pop(), found.pop(), found.pop()].map(Option::unwrap_or_default);
        let had_any = php.iter().any(|(field, _)| field == WORKERS);
        // By whoever tells of them.
        let mut told: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (field, _) in &php {
            if let Some((run, address)) = field.split_once(' ') {
                told.entry(run).or_default().push(address);
            }
        }

        let of_node: HashMap<String, LanAddress> =
            lan.into_iter().filter_map(|(lan, node)| Some((node, lan.parse().ok()?))).collect();
        let (hearers, channels): (Vec<&str>, Vec<String>) = runs
            .iter()
            .filter_map(|(node, run)| Some((&**run, keys.channel(&Channel::Node(*of_node.get(node)?)))))
            .unzip();
        let listeners = connection.listeners(channels).await?;
        let hear: HashSet<&str> =
            hearers.into_iter().zip(listeners).filter(|(_, listeners)| *listeners > 0).map(|(run, _)| run).collect();
        let is_there = |run: &str| hear.contains(run);

        // What this node has said may have been lost with Redis' data; what it does not say any more may stand there.
        let own = told.remove(&*run).unwrap_or_default();
        let mut said: Vec<String> = Vec::new();
        for address in ours.iter().filter(|address| !own.contains(&&***address)) {
            said.extend([format!("{run} {address}"), String::new()]);
        }
        let is_lost = !said.is_empty();
        if had_workers && !had_any {
            said.extend([WORKERS.to_owned(), String::new()]);
        }
        if !said.is_empty() {
            connection.call(Command::hset(keys.php()).args(said)).await?;
        }
        let stale: Vec<String> = own
            .into_iter()
            .filter(|address| !ours.iter().any(|known| known == address))
            .map(|address| format!("{run} {address}"))
            .collect();
        if !stale.is_empty() {
            connection.call(Command::hdel(keys.php()).args(stale)).await?;
        }

        let (heard, silent): (Vec<_>, Vec<_>) = told.into_iter().partition(|(run, _)| is_there(run));
        let addresses = |told: Vec<(&str, Vec<&str>)>| -> HashSet<String> {
            let addresses = told.into_iter().flat_map(|(_, addresses)| addresses).map(str::to_owned);
            addresses.filter(|address| !ours.contains(address)).collect()
        };
        let (others, silent) = (addresses(heard), addresses(silent));
        let silent = silent.into_iter().filter(|address| !others.contains(address)).collect();
        let look = LastLook { said: ours.to_vec(), connection: Some(connection.mark.clone()) };
        let mut last = self.last_look.lock();
        let is_another = last.connection.is_some() && last.connection != look.connection;
        let is_in_doubt = is_another || is_lost && last.said == look.said;
        *last = look;
        let others = others.into_iter().collect();
        Ok(Php { others, silent, had_workers: had_workers || had_any, is_in_doubt })
    }
}

//! `GatewayWorker`'s heartbeat, exactly its algorithm (its `Gateway::ping`): a counter per client, −1 at first and after every
//! sign of life, looked at once a tick. A silent client is cut between limit + 0.5 and limit + 1 intervals.

use std::time::Duration;

use crate::message::Message;

/// What every tick does.
#[derive(Debug, Clone)]
pub struct Tick {
    /// Unanswered intervals after which a client is cut; 0 never.
    pub limit: u32,
    /// What is sent to a silent client, if anything.
    pub ping: Option<Message>,
    /// Clients without WebSocket take part: they can answer what is sent, or were asked to speak by themselves.
    pub for_streams: bool,
    /// Time between two ticks of one client.
    pub period: Duration,
}

impl Tick {
    /// The ticks of an interval: two an interval when somebody can be cut.
    pub fn new(interval: Duration, limit: u32, ping: Option<Message>, for_streams: bool) -> Option<Self> {
        let period = if limit > 0 { interval / 2 } else { interval };
        (!period.is_zero()).then_some(Self { limit, ping, for_streams, period })
    }
}

/// What a tick decides about a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// Leave it.
    Nothing,
    /// Send the ping.
    Send,
    /// It was silent for too long.
    Cut,
}

/// One client's counter.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    count: i32,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { count: -1 }
    }
}

impl Heartbeat {
    /// One tick; `heard`: there was a sign of life since the last.
    pub fn tick(&mut self, tick: &Tick, heard: bool) -> Beat {
        if heard {
            self.count = -1;
        }
        if tick.limit > 0 && i64::from(self.count) >= 2 * i64::from(tick.limit) {
            return Beat::Cut;
        }
        self.count = self.count.saturating_add(1);
        if tick.ping.is_none() || self.count == 0 || (tick.limit > 0 && self.count % 2 == 1) {
            return Beat::Nothing;
        }
        Beat::Send
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `GatewayWorker` did at each tick: `.` nothing, `s` send, `x` cut; `heard` before tick n when the mask's bit n is set.
    fn run(limit: u32, ping: bool, heard: impl Fn(usize) -> bool) -> String {
        let tick = Tick::new(Duration::from_secs(10), limit, ping.then(Message::ping), false).unwrap();
        let mut client = Heartbeat::default();
        let mut seen = String::new();
        for number in 0..12 {
            match client.tick(&tick, heard(number)) {
                Beat::Nothing => seen.push('.'),
                Beat::Send => seen.push('s'),
                Beat::Cut => {
                    seen.push('x');
                    break;
                }
            }
        }
        seen
    }

    #[test]
    fn a_silent_client_is_pinged_and_cut_as_by_gatewayworker() {
        assert_eq!(run(0, true, |_| false), ".sssssssssss");
        assert_eq!(run(0, false, |_| false), "............");
        assert_eq!(run(1, true, |_| false), "..sx");
        assert_eq!(run(1, false, |_| false), "...x");
        assert_eq!(run(2, true, |_| false), "..s.sx");
    }

    #[test]
    fn a_client_that_speaks_is_left_alone() {
        assert_eq!(run(1, true, |_| true), "............");
        assert_eq!(run(1, true, |number| number % 2 == 1), "............");
        assert_eq!(run(1, true, |number| number % 3 == 0), "..s..s..s..s");
    }

    #[test]
    fn an_interval_of_zero_is_off() {
        assert!(Tick::new(Duration::ZERO, 1, None, false).is_none());
    }
}

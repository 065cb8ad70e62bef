package simulator

import (
	"math"
	"math/rand/v2"
	"time"
)

// tasteSpread is the standard deviation of a taste in each topic.
const tasteSpread = 1.1

// user is what a user likes, and where the user is.
type user struct {
	number   int32
	id       string
	taste    []float64
	appetite float64 // log odds of staying after a view that fits as usual
	seen     map[int32]bool

	next     time.Time // of the next view
	opens    time.Time // when this session began
	sessions uint64    // begun
	left     int       // most views left in this session; 0: between sessions
	session  []int32   // items watched in it
	fatigue  []float64 // by topic
	queue    []int32   // what the policy wants to show next
	list     List      // which the queue is the rest of
	asked    uint64    // how often a policy was asked

	pcg, policyPCG rand.PCG
	rng, policy    *rand.Rand
}

// Streams of random numbers that a user has.
const (
	streamUser uint64 = iota
	streamSession
	streamView
	streamPolicy
)

// seed begins the random numbers of a user's stream at a place.
func (u *user) seed(seed, stream, place uint64) {
	if u.rng == nil {
		u.rng = rand.New(&u.pcg)
	}
	u.pcg.Seed(mix(seed^mix(stream)), mix(uint64(u.number)<<40^place))
}

// policySeed begins those that a policy may use.
func (u *user) policySeed(seed uint64) {
	if u.policy == nil {
		u.policy = rand.New(&u.policyPCG)
	}
	u.policyPCG.Seed(mix(seed^mix(streamPolicy)), mix(uint64(u.number)<<40^u.asked))
}

// mix is the finaliser of SplitMix64 (Steele et al., 2014): seeds that differ in one bit
// give numbers that have nothing to do with each other.
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// longestSession is the most views of a session.
const longestSession = 200

// open begins a session: tastes have moved a step since the last one.
func (w *World) open(u *user) {
	last := u.opens
	u.opens, u.left, u.session, u.queue = u.next, longestSession, u.session[:0], u.queue[:0]
	u.sessions++
	clear(u.fatigue)
	if w.cfg.Drift <= 0 || last.IsZero() {
		return
	}
	// Ornstein and Uhlenbeck's walk: as much noise comes in as is forgotten.
	keep := math.Exp2(-float64(u.opens.Sub(last)) / float64(w.cfg.Drift))
	noise := tasteSpread * math.Sqrt(1-keep*keep)
	u.seed(w.cfg.Seed, streamSession, u.sessions<<1)
	for t := range u.taste {
		u.taste[t] = keep*u.taste[t] + noise*u.rng.NormFloat64()
	}
}

// leave ends a session. The next one's time does not depend on what was shown, unless this
// one lasted until then.
func (w *World) leave(u *user) {
	u.seed(w.cfg.Seed, streamSession, u.sessions<<1|1)
	next := u.opens.Add(w.pause(u))
	if earliest := u.next.Add(time.Hour); next.Before(earliest) {
		next = earliest
	}
	u.left, u.next = 0, next
}

// pause is the time from a session's begin to that of the next one.
func (w *World) pause(u *user) time.Duration {
	return time.Hour + time.Duration(u.rng.ExpFloat64()*float64(24*time.Hour)/w.cfg.SessionsADay)
}

// fit is how well an item suits a user now.
func (w *World) fit(u *user, at int32) float64 {
	it := &w.items[at]
	fit := it.quality - u.fatigue[it.topic]
	for t, v := range it.content {
		fit += u.taste[t] * v
	}
	if w.cfg.Freshness != 0 {
		fit += w.cfg.Freshness * math.Exp2(-u.next.Sub(it.from).Hours()/72)
	}
	if u.seen[at] {
		fit -= boredom
	}
	return fit
}

// boredom is what an item loses for who has seen it.
const boredom = 1.5

// reaction is what a user does with an item.
type reaction struct {
	watched                               time.Duration
	pause                                 time.Duration // before the next view
	like, follow, comment, share, dislike bool
	stays                                 bool
}

// react draws a reaction. It takes the same number of random numbers whatever the fit
// is.
func react(rng *rand.Rand, fit, appetite float64, duration time.Duration) reaction {
	skip, length, noise := rng.Float64(), rng.ExpFloat64(), rng.NormFloat64()
	share := watchShare(fit, skip, length, noise, duration)
	r := reaction{watched: time.Duration(share * float64(duration)).Truncate(time.Millisecond)}
	r.pause = time.Duration((0.3 + 1.5*rng.Float64()) * float64(time.Second))
	// Who has watched more of it likes it more often, whatever else they think.
	liking := fit + shareLikes*min(share, 1.5)
	r.like = rng.Float64() < likeOdds(liking)
	r.follow = rng.Float64() < sigmoid(liking-8.7)
	r.comment = rng.Float64() < sigmoid(liking-7.2)
	r.share = rng.Float64() < sigmoid(liking-9)
	r.dislike = rng.Float64() < sigmoid(-0.9*liking-3.9) && !r.like
	r.stays = rng.Float64() < sigmoid(appetite+0.6*fit)
	return r
}

// watchShare is how much of a video is watched: some are skipped within seconds, of the
// others most is watched, less of long ones, and some run again.
func watchShare(fit, skip, length, noise float64, duration time.Duration) float64 {
	if skip < skipOdds(fit) {
		return min(skipSeconds*length/duration.Seconds(), 0.9)
	}
	return min(math.Exp(meanLogShare(fit, duration)+shareSpread*noise), 8)
}

const (
	skipSeconds = 3.2 // mean time until a user skips
	shareSpread = 0.5 // standard deviation of the logarithm of the share of what is not skipped
	shareLikes  = 0.8 // what watching all of it adds to liking it
)

func skipOdds(fit float64) float64 { return sigmoid(0.7 - 0.7*fit) }

func meanLogShare(fit float64, duration time.Duration) float64 {
	return 0.12*fit - 0.35 - 0.3*math.Log(duration.Seconds()/15)
}

func likeOdds(liking float64) float64 { return sigmoid(0.9*liking - 4.6) }

// expected returns the mean watch time in seconds and the chance of a like, for a fit.
func expected(fit float64, duration time.Duration) (watch, like float64) {
	s, p := duration.Seconds(), skipOdds(fit)
	long := math.Exp(meanLogShare(fit, duration) + shareSpread*shareSpread/2)
	short := min(skipSeconds/s, 0.9)
	return s * (p*short + (1-p)*long), p*likeOdds(fit+shareLikes*short) + (1-p)*likeOdds(fit+shareLikes*min(long, 1.5))
}

func sigmoid(x float64) float64 { return 1 / (1 + math.Exp(-x)) }

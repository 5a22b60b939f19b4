package embedded

import (
	"errors"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kfake"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// maxCollected bounds the errors kept of one Close: a full disk repeats itself for every partition.
const maxCollected = 8

// clusterLog passes the cluster's messages to zap, a level lower than the cluster thinks of them where it speaks of
// ordinary traffic. While the cluster is closed it also keeps the failures, because kfake only logs them.
type clusterLog struct {
	log *zap.Logger

	mu         sync.Mutex
	collecting bool
	errs       []error
}

// Logf implements kfake.Logger.
func (l *clusterLog) Logf(level kfake.LogLevel, format string, args ...any) {
	var to zapcore.Level
	switch level {
	case kfake.LogLevelNone:
		return
	case kfake.LogLevelError:
		to = zapcore.ErrorLevel
		l.keep(format, args)
	case kfake.LogLevelWarn:
		to = zapcore.InfoLevel // transactions that took a few milliseconds, or timed out with their process
	case kfake.LogLevelInfo:
		to = zapcore.DebugLevel
	case kfake.LogLevelDebug:
		return // a message per request
	default:
		return
	}
	if ce := l.log.Check(to, "embedded broker"); ce != nil {
		ce.Write(zap.String("msg", fmt.Sprintf(format, args...)))
	}
}

func (l *clusterLog) keep(format string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.collecting && len(l.errs) < maxCollected {
		l.errs = append(l.errs, fmt.Errorf("embedded: close: "+format, args...))
	}
}

func (l *clusterLog) collect() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.collecting = true
}

func (l *clusterLog) collected() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

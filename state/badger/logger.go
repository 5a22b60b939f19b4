package badger

import (
	"fmt"
	"strings"
	"time"

	"go.uber.org/zap"
)

// logger passes Badger's messages on. Badger prints keys, requests and values into some of them, so that only what
// cannot be one is let through: numbers, durations, and the first line of texts and errors.
type logger struct{ log *zap.SugaredLogger }

func (l *logger) Errorf(format string, args ...any)   { l.log.Error(message(format, args)) }
func (l *logger) Warningf(format string, args ...any) { l.log.Warn(message(format, args)) }

// Infof logs at debug level: Badger reports each opened table.
func (l *logger) Infof(format string, args ...any) { l.log.Debug(message(format, args)) }

// Debugf drops what Badger writes for each request.
func (l *logger) Debugf(string, ...any) {}

func message(format string, args []any) string {
	if len(args) == 0 {
		return "badger: " + firstLine(format)
	}
	format = strings.NewReplacer("%q", "%v", "%+v", "%v", "%#v", "%v").Replace(format)
	safe := make([]any, len(args))
	for i, arg := range args {
		switch arg := arg.(type) {
		case bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64, float32, float64, time.Duration:
			safe[i] = arg
		case string:
			safe[i] = firstLine(arg)
		case error:
			safe[i] = firstLine(arg.Error())
		default:
			safe[i] = "(withheld)"
		}
	}
	return "badger: " + firstLine(fmt.Sprintf(format, safe...))
}

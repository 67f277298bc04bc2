/* cuDNN's graph interface without a GPU: every operation graph has one engine that needs nothing and does nothing.

   Written without cuDNN's headers, which come in a wheel of half a gigabyte; numbers are those of its cudnn_graph.h.
   Functions that only return success are added by build.py.
*/
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ENGINECFG_INTERMEDIATE_INFO = 301, ENGINECFG_KNOB_CHOICES = 302, ENGINE_NUMERICAL_NOTE = 1303, ENGINE_BEHAVIOR_NOTE = 1305 };
enum { TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_INT32 = 23, TYPE_CHAR = 24 };

void stand_in_say(const char *format, ...);

size_t cudnnGetVersion(void) { return 92800; }
const char *cudnnGetErrorString(int status) { return status ? "an error" : "no error"; }
void cudnnGetLastErrorString(char *message, size_t size) { if (size) message[0] = 0; }

int cudnnBackendCreateDescriptor(int type, void **descriptor) { *descriptor = calloc(1, 64); return 0; }
int cudnnBackendDestroyDescriptor(void *descriptor) { free(descriptor); return 0; }
int cudnnBackendExecute(void *handle, void *plan, void *variants) { stand_in_say("library cudnnBackendExecute"); return 0; }

int cudnnBackendGetAttribute(void *descriptor, int name, int type, int64_t room, int64_t *count, void *values) {
    int listed = name == ENGINECFG_INTERMEDIATE_INFO || name == ENGINECFG_KNOB_CHOICES || name == ENGINE_NUMERICAL_NOTE ||
                 name == ENGINE_BEHAVIOR_NOTE;
    if (count) *count = listed ? 0 : 1;
    if (listed || !values || !room) return 0;
    switch (type) { /* sizes, indices: none */
    case TYPE_INT64: *(int64_t *)values = 0; break;
    case TYPE_INT32: *(int32_t *)values = 0; break;
    case TYPE_BOOLEAN: case TYPE_CHAR: *(char *)values = 0; break;
    }
    return 0;
}
